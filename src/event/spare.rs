//! One spare draft per thread: an event's buffers come from here and go back once its record is stored, so that a thread that
//! captures does not allocate.

use std::cell::Cell;

use super::builder::Draft;

/// What a new buffer has room for: an event of about eight properties, twice over.
const FIRST_CAPACITY: usize = 512;
/// Buffers that grew larger are not kept: one huge event must not cost a thread its memory for ever.
const MOST_KEPT: usize = 4096;

thread_local! {
    static SPARE: Cell<Option<Box<Draft>>> = const { Cell::new(None) };
}

/// An empty draft.
#[inline]
pub(super) fn take() -> Box<Draft> {
    // The access fails where a thread-local's destructor captures after this one's ran: then there is no spare.
    SPARE
        .try_with(Cell::take)
        .ok()
        .flatten()
        .unwrap_or_else(|| Box::new(Draft { body: Vec::with_capacity(FIRST_CAPACITY), ..Draft::default() }))
}

/// Keeps a draft's buffers for the thread's next event.
#[inline]
pub(super) fn recycle(mut draft: Box<Draft>) {
    if draft.body.capacity() + draft.groups.capacity() <= MOST_KEPT {
        draft.clear();
        let _no_spare_at_thread_end = SPARE.try_with(|spare| spare.set(Some(draft)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft_of(capacity: usize) -> Box<Draft> {
        Box::new(Draft { body: Vec::with_capacity(capacity), ..Draft::default() })
    }

    #[test]
    fn a_recycled_draft_comes_back_empty_and_once() {
        let mut draft = draft_of(1234);
        draft.body.push(1);
        draft.property_count = 1;
        draft.timestamp = Some(1);
        recycle(draft);
        let again = take();
        assert_eq!(
            (again.body.capacity(), again.body.len(), again.property_count, again.timestamp),
            (1234, 0, 0, None)
        );
        assert_eq!(take().body.capacity(), FIRST_CAPACITY);
    }

    #[test]
    fn buffers_that_grew_large_are_let_go() {
        recycle(draft_of(MOST_KEPT + 1));
        assert_eq!(take().body.capacity(), FIRST_CAPACITY);
    }

    #[test]
    fn an_event_in_a_thread_local_destructor_still_gets_a_draft() {
        struct Last(std::sync::mpsc::Sender<usize>);
        impl Drop for Last {
            fn drop(&mut self) {
                let draft = take();
                self.0.send(draft.body.capacity()).unwrap();
                recycle(draft);
            }
        }
        thread_local! {
            static LAST: Cell<Option<Last>> = const { Cell::new(None) };
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        // Which destructor runs first follows from which thread-local was used first: try both.
        for spare_first in [true, false] {
            let sender = sender.clone();
            let thread = std::thread::spawn(move || {
                if spare_first {
                    recycle(take());
                }
                LAST.set(Some(Last(sender)));
                recycle(take());
            });
            thread.join().unwrap();
            assert_eq!(receiver.recv(), Ok(FIRST_CAPACITY));
        }
    }
}
