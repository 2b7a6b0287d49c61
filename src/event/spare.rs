//! One spare buffer per thread: an event's buffer comes from here and goes back once its record is stored, so that a thread that
//! captures does not allocate.

use std::cell::Cell;

/// What a new buffer has room for: an event of about eight properties.
const FIRST_CAPACITY: usize = 512;
/// A buffer that grew larger is not kept: one huge event must not cost a thread its memory for ever.
const MOST_KEPT: usize = 4096;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An empty buffer.
#[inline]
pub(super) fn take() -> Vec<u8> {
    // Fails in a thread-local's destructor that captures after this one's ran: then there is no spare.
    let spare = SPARE.try_with(Cell::take).unwrap_or_default();
    if spare.capacity() == 0 { Vec::with_capacity(FIRST_CAPACITY) } else { spare }
}

/// Keeps a buffer for the thread's next event.
#[inline]
pub(crate) fn recycle(mut buffer: Vec<u8>) {
    if buffer.capacity() <= MOST_KEPT {
        buffer.clear();
        let _no_spare_at_thread_end = SPARE.try_with(|spare| spare.set(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_buffer_comes_back_empty() {
        let mut buffer = Vec::with_capacity(1234);
        buffer.push(1);
        recycle(buffer);
        let again = take();
        assert_eq!((again.capacity(), again.len()), (1234, 0));
        assert_eq!(take().capacity(), FIRST_CAPACITY, "it is given once");
    }

    #[test]
    fn a_buffer_that_grew_large_is_let_go() {
        recycle(Vec::with_capacity(MOST_KEPT + 1));
        assert_eq!(take().capacity(), FIRST_CAPACITY);
    }

    #[test]
    fn a_capture_in_a_thread_local_destructor_still_gets_a_buffer() {
        struct Last(std::sync::mpsc::Sender<usize>);
        impl Drop for Last {
            fn drop(&mut self) {
                let buffer = take();
                self.0.send(buffer.capacity()).unwrap();
                recycle(buffer);
            }
        }
        thread_local! {
            static LAST: Cell<Option<Last>> = const { Cell::new(None) };
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        // Destructors run in the reverse order of registration or the same, as the platform likes: try both.
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
            assert!(receiver.recv().unwrap() >= FIRST_CAPACITY);
        }
    }
}
