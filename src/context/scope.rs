//! The context of a request, and which one is current on a thread or in a future.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use pin_project_lite::pin_project;
use serde::Serialize;
use serde_json::Value;

use crate::record::msgpack::Reader;
use crate::record::values::value_as;
use crate::record::{Pairs, json};

/// The property for the session of an event.
pub(crate) const SESSION_ID: &str = "$session_id";
/// The property for the URL of a request, without its query unless the program asks for it.
pub(crate) const CURRENT_URL: &str = "$current_url";
/// The property for the path of that URL.
pub(crate) const REQUEST_PATH: &str = "$request_path";

/// Distinct id, session id and properties for every event that is captured while a request is served.
///
/// A value: clones are cheap, and changing one does not change another.
///
/// ```
/// use posthog::Context;
/// use posthog::context::current_distinct_id;
///
/// let context = Context::new().distinct_id("user_1").session_id("session_7").prop("route", "/checkout");
/// context.enter(|| {
///     assert_eq!(current_distinct_id().as_deref(), Some("user_1"));
/// });
/// assert_eq!(current_distinct_id(), None);
/// ```
#[derive(Clone, Default)]
#[must_use = "a context does nothing until it is entered"]
pub struct Context {
    state: Arc<State>,
}

#[derive(Clone, Default)]
struct State {
    distinct_id: Option<Box<str>>,
    /// Includes the session id.
    properties: Pairs,
    fresh: bool,
    problems: Option<Arc<Problems>>,
    /// Whether an exception of level error or fatal was captured in this context or one inside of it, where somebody
    /// asks: shared by all copies.
    has_exception: Option<Arc<AtomicBool>>,
}

/// Descriptions of values that could not be used.
struct Problems {
    descriptions: Vec<String>,
    is_reported: AtomicBool,
}

impl Context {
    /// An empty context. It inherits from the context that is current when it is entered.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty context that inherits nothing, for work that merely starts inside of a request.
    pub fn fresh() -> Self {
        Self { state: Arc::new(State { fresh: true, ..State::default() }) }
    }

    /// The current context with all inherited values, to pass to a task or thread that continues the same work.
    ///
    /// ```
    /// use posthog::Context;
    /// use posthog::context::current_distinct_id;
    ///
    /// Context::new().distinct_id("user_1").enter(|| {
    ///     let context = Context::current().unwrap_or_default();
    ///     let other = std::thread::spawn(move || context.enter(current_distinct_id));
    ///     assert_eq!(other.join().unwrap().as_deref(), Some("user_1"));
    /// });
    /// ```
    pub fn current() -> Option<Self> {
        current()
    }

    /// Sets the distinct id for events that have none ([`Event::new_anon`](crate::Event::new_anon)). A blank one
    /// removes it.
    pub fn distinct_id(mut self, distinct_id: impl AsRef<str>) -> Self {
        let distinct_id = distinct_id.as_ref();
        self.change().distinct_id = (!distinct_id.trim().is_empty()).then(|| distinct_id.into());
        self
    }

    /// Sets the `$session_id` for every event that has none. A blank one removes it.
    pub fn session_id(mut self, session_id: impl AsRef<str>) -> Self {
        let session_id = session_id.as_ref();
        if session_id.trim().is_empty() {
            self.change().properties.remove(SESSION_ID);
            return self;
        }
        self.prop(SESSION_ID, session_id)
    }

    /// Sets a property for every event that does not set it itself. A value that cannot be serialized is left out, and
    /// the first client that uses the context records the reason.
    pub fn prop(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        match Pairs::one(key.as_ref(), &value) {
            Ok(pair) => self.change().properties.merge(&pair),
            Err(reason) => self.remember(format!("property {:?} of a Context was left out: {reason}", key.as_ref())),
        }
        self
    }

    /// The distinct id, if there is one.
    pub(crate) fn known_distinct_id(&self) -> Option<&str> {
        self.state.distinct_id.as_deref()
    }

    /// A property that is text, borrowed, without an allocation.
    pub(crate) fn known_text(&self, key: &str) -> Option<&str> {
        Reader::new(self.properties().entries().last(key)?).string().ok()
    }

    /// The properties for every event.
    pub(crate) fn properties(&self) -> &Pairs {
        &self.state.properties
    }

    /// Descriptions of values that could not be used; empty after the first call.
    pub(crate) fn take_problems(&self) -> &[String] {
        match &self.state.problems {
            Some(problems) if !problems.is_reported.swap(true, Ordering::Relaxed) => &problems.descriptions,
            _ => &[],
        }
    }

    /// This context combined with the one that it is entered in.
    fn within(&self, outer: Option<Self>) -> Self {
        let Some(outer) = outer.filter(|_| !self.state.fresh) else { return self.clone() };
        let mut inner = outer;
        let state = inner.change();
        state.properties.merge(&self.state.properties);
        if self.state.distinct_id.is_some() {
            state.distinct_id.clone_from(&self.state.distinct_id);
        }
        if self.state.problems.is_some() {
            state.problems.clone_from(&self.state.problems);
        }
        if self.state.has_exception.is_some() {
            state.has_exception.clone_from(&self.state.has_exception);
        }
        inner
    }

    /// This context, which notes from now on that an exception was captured in it.
    #[cfg(feature = "tower")]
    pub(crate) fn noting_exceptions(mut self) -> Self {
        self.change().has_exception = Some(Arc::default());
        self
    }

    /// Whether an exception of level error or fatal was captured, as far as the context notes that.
    #[cfg(feature = "tower")]
    pub(crate) fn has_exception(&self) -> bool {
        self.state.has_exception.as_ref().is_some_and(|noted| noted.load(Ordering::Relaxed))
    }

    /// Notes that an exception of level error or fatal is captured. One store; also called by the panic hook.
    pub(crate) fn note_exception(&self) {
        if let Some(noted) = &self.state.has_exception {
            noted.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn known_session_id(&self) -> Option<String> {
        value_as(self.properties().entries().last(SESSION_ID)?)
    }

    fn change(&mut self) -> &mut State {
        Arc::make_mut(&mut self.state)
    }

    #[cold]
    pub(super) fn remember(&mut self, problem: String) {
        let state = self.change();
        let mut descriptions =
            state.problems.as_ref().map(|problems| problems.descriptions.clone()).unwrap_or_default();
        descriptions.push(problem);
        state.problems = Some(Arc::new(Problems { descriptions, is_reported: AtomicBool::new(false) }));
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        let shown = json::write_entries(self.properties().entries(), &mut text);
        let properties: Value = shown.ok().and_then(|()| serde_json::from_slice(&text).ok()).unwrap_or_default();
        f.debug_struct("Context")
            .field("distinct_id", &self.state.distinct_id)
            .field("properties", &format_args!("{properties}"))
            .finish_non_exhaustive()
    }
}

/// Whether any context was ever entered. A program without contexts pays for reading this flag only.
static USED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
    /// Whether a context was ever current on this thread. The first access to `CURRENT` registers a destructor, which
    /// may allocate; this has none.
    static WAS_ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// The current context.
#[inline]
pub(crate) fn current() -> Option<Context> {
    if USED.load(Ordering::Relaxed) { on_this_thread() } else { None }
}

/// Calls `look` with the current context, if there is one. For the panic hook: it neither allocates nor waits, and does
/// nothing while the context is being replaced.
pub(crate) fn with_current(look: impl FnOnce(&Context)) {
    if !WAS_ENTERED.try_with(Cell::get).unwrap_or(false) {
        return;
    }
    let _none_at_thread_end = CURRENT.try_with(|current| {
        if let Ok(current) = current.try_borrow()
            && let Some(context) = &*current
        {
            look(context);
        }
    });
}

/// The distinct id that the current context gives to an event without one; `None` if there is none.
pub fn current_distinct_id() -> Option<String> {
    current()?.known_distinct_id().map(str::to_owned)
}

/// The session id that the current context gives to an event without one; `None` if there is none.
pub fn current_session_id() -> Option<String> {
    current()?.known_session_id()
}

impl Context {
    /// Runs `work` with this context as the current one of the thread, until `work` returns or panics. Contexts nest.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let inside = self.within(current());
        let _left = Visit::begin(inside, None);
        work()
    }

    /// Runs a future in this context: the context is current whenever the future is polled or dropped, and at no other
    /// time. Tasks that the future spawns do not inherit it; pass them [`Context::current`].
    ///
    /// ```
    /// # use posthog::Context;
    /// # use posthog::context::current_distinct_id;
    /// # async fn serve() {}
    /// # async fn demo() {
    /// Context::new().distinct_id("user_1").scope(async {
    ///     serve().await;
    ///     assert_eq!(current_distinct_id().as_deref(), Some("user_1"));
    /// }).await;
    /// # }
    /// ```
    pub fn scope<F: Future>(&self, future: F) -> ScopedFuture<F> {
        ScopedFuture { future: Some(future), context: self.clone(), entered: false }
    }

    /// Changes the current context until it is left; returns whether there is one. For a program that authenticates a
    /// request: its own knowledge then replaces what the request's headers claimed.
    ///
    /// ```
    /// use posthog::Context;
    /// use posthog::context::current_distinct_id;
    ///
    /// Context::new().distinct_id("from a header").enter(|| {
    ///     assert!(Context::update(|context| context.distinct_id("user_1")));
    ///     assert_eq!(current_distinct_id().as_deref(), Some("user_1"));
    /// });
    /// assert!(!Context::update(|context| context));
    /// ```
    pub fn update(change: impl FnOnce(Context) -> Context) -> bool {
        let Some(context) = current() else { return false };
        // The caller's code runs before anything changes: it may panic, and it may capture.
        drop(replace(Some(change(context))));
        true
    }
}

pin_project! {
    /// A future and the context that it runs in; see [`Context::scope`].
    #[derive(Debug)]
    #[must_use = "a future does nothing unless it is polled"]
    pub struct ScopedFuture<F> {
        // `Some` until it is dropped.
        #[pin]
        future: Option<F>,
        context: Context,
        entered: bool,
    }

    impl<F> PinnedDrop for ScopedFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Events that a cancelled request captures in its destructors belong to that request and not to the code
            // that drops it. For the same reason nothing is inherited here.
            let _left = Visit::begin(this.context.clone(), None);
            this.future.set(None);
        }
    }
}

impl<F: Future> Future for ScopedFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if !*this.entered {
            *this.context = this.context.within(current());
            *this.entered = true;
        }
        let Some(future) = this.future.as_pin_mut() else { return Poll::Pending };
        let _left = Visit::begin(this.context.clone(), Some(this.context));
        future.poll(task)
    }
}

/// Keeps a context current while it lives. Never returned to callers, so that visits end in reverse order.
struct Visit<'a> {
    outer: Option<Context>,
    /// Where the context is stored between two visits, with the changes made to it.
    home: Option<&'a mut Context>,
}

impl<'a> Visit<'a> {
    fn begin(context: Context, home: Option<&'a mut Context>) -> Self {
        USED.store(true, Ordering::Relaxed);
        Self { outer: replace(Some(context)), home }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let left = replace(self.outer.take());
        if let (Some(home), Some(left)) = (&mut self.home, left) {
            **home = left;
        }
    }
}

fn on_this_thread() -> Option<Context> {
    // `None` at the very end of the thread and while the value is being replaced.
    CURRENT.try_with(|current| current.try_borrow().ok()?.clone()).ok().flatten()
}

fn replace(context: Option<Context>) -> Option<Context> {
    let mut context = context;
    let _none_at_thread_end = WAS_ENTERED.try_with(|was_entered| was_entered.set(true));
    let _none_at_thread_end = CURRENT.try_with(|current| {
        if let Ok(mut current) = current.try_borrow_mut() {
            std::mem::swap(&mut *current, &mut context);
        }
    });
    context
}
