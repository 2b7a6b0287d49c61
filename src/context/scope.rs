//! The context that is current on a thread, or in a future while that is polled.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use pin_project_lite::pin_project;

use super::Context;

/// Whether any context was ever entered: captures of a program without contexts look no further.
static USED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
    /// Whether a context was ever current on this thread. The first look at `CURRENT` registers a destructor, which may allocate; this
    /// has none.
    static WAS_ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// The current context.
#[inline]
pub(crate) fn current() -> Option<Context> {
    if USED.load(Ordering::Relaxed) { on_this_thread() } else { None }
}

/// Shows the current context to `look` where it lies. For the panic hook: nothing is allocated, nothing is waited for, and there is
/// none while the context is being replaced.
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

/// The distinct id that an event which names nobody would have here: `None` outside of a context that knows one.
pub fn current_distinct_id() -> Option<String> {
    current()?.known_distinct_id().map(str::to_owned)
}

/// The session id that an event would have here, if the context knows one.
pub fn current_session_id() -> Option<String> {
    current()?.known_session_id()
}

impl Context {
    /// Runs `work` in this context: it is current, on this thread, until `work` returns or panics. Contexts nest.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let inside = self.within(current());
        let _left = Visit::begin(inside, None);
        work()
    }

    /// Runs a future in this context: it is current while that future is polled, or dropped before its end, wherever that happens, and
    /// at no other time.
    /// Tasks that the future spawns are on their own; give them [`Context::current`].
    ///
    /// ```
    /// # use posthog::{Context, current_distinct_id};
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

    /// Changes the current context until it is left, and tells whether there is one. For an application that authenticates a request:
    /// what it knows then replaces what the request's headers said.
    ///
    /// ```
    /// use posthog::{Context, current_distinct_id};
    ///
    /// Context::new().distinct_id("from a header").enter(|| {
    ///     assert!(Context::update(|context| context.distinct_id("user_1")));
    ///     assert_eq!(current_distinct_id().as_deref(), Some("user_1"));
    /// });
    /// assert!(!Context::update(|context| context));
    /// ```
    pub fn update(change: impl FnOnce(Context) -> Context) -> bool {
        let Some(context) = current() else { return false };
        // The caller's code runs before anything is touched: it may panic, and it may capture.
        drop(replace(Some(change(context))));
        true
    }
}

pin_project! {
    /// A future and the context it runs in; see [`Context::scope`].
    #[derive(Debug)]
    #[must_use = "a future does nothing unless it is polled"]
    pub struct ScopedFuture<F> {
        // There until it is dropped.
        #[pin]
        future: Option<F>,
        context: Context,
        entered: bool,
    }

    impl<F> PinnedDrop for ScopedFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // What a request that is given up captures on its way out is its own, and not of whoever gives it up. Nothing is inherited
            // here, for the same reason.
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

/// A context is current as long as this lives. Never handed out: what is begun last ends first.
struct Visit<'a> {
    outer: Option<Context>,
    /// Where the context lives between two visits, with what was changed in it.
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
    // Neither at the thread's very end, nor while the value is being replaced, is there one.
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
