//! Deadlines without a timer each: the worker looks over them a few times a second.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// The time of a [`Deadline`] is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

#[derive(Debug, Default)]
struct Entry {
    at: Cell<u64>,
    passed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// All deadlines of one worker.
#[derive(Debug, Default)]
pub struct Deadlines {
    set: RefCell<Vec<Rc<Entry>>>,
    free: RefCell<Vec<Rc<Entry>>>,
}

/// One deadline; given back when dropped.
#[derive(Debug)]
pub struct Deadline {
    entry: Rc<Entry>,
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // 0 marks an entry that nobody waits for; the next look-over collects it.
        self.entry.at.set(0);
        self.entry.waker.borrow_mut().take();
    }
}

impl Deadlines {
    /// A deadline at `at`, nanoseconds of the worker's clock, not 0.
    pub fn set(&self, at: u64) -> Deadline {
        let entry = self.free.borrow_mut().pop().unwrap_or_default();
        entry.at.set(at);
        entry.passed.set(false);
        self.set.borrow_mut().push(entry.clone());
        Deadline { entry }
    }

    /// Wakes what is over at `now` and collects what is done with.
    pub fn look(&self, now: u64) {
        let mut set = self.set.borrow_mut();
        let mut free = self.free.borrow_mut();
        let mut index = 0;
        while let Some(entry) = set.get(index) {
            let at = entry.at.get();
            if at == 0 {
                free.push(set.swap_remove(index));
                continue;
            }
            if at <= now
                && !entry.passed.replace(true)
                && let Some(waker) = entry.waker.borrow_mut().take()
            {
                waker.wake();
            }
            index += 1;
        }
        free.truncate(4096);
    }
}

impl Deadline {
    /// The result of `future`, or `Elapsed` once a look-over finds the time over.
    pub async fn within<F: Future>(&self, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if self.entry.passed.get() {
                return Poll::Ready(Err(Elapsed));
            }
            let poll = future.as_mut().poll(context);
            if poll.is_pending() {
                self.wait(context);
            }
            poll.map(Ok)
        })
        .await
    }

    /// Puts it off, also when it has passed.
    pub fn put_off(&self, at: u64) {
        self.entry.at.set(at);
        self.entry.passed.set(false);
    }

    fn wait(&self, context: &Context<'_>) {
        let mut waker = self.entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_over_is_told_and_what_is_done_with_is_used_again() {
        let deadlines = Deadlines::default();
        assert_eq!(deadlines.set(5).within(async { 7 }).await, Ok(7));
        deadlines.look(1);
        assert!(deadlines.set.borrow().is_empty());
        assert_eq!(deadlines.free.borrow().len(), 1);
        let deadline = deadlines.set(5);
        let (result, ()) = tokio::join!(deadline.within(std::future::pending::<()>()), async {
            deadlines.look(4);
            assert!(!deadline.entry.passed.get());
            deadlines.look(5);
        });
        assert_eq!(result, Err(Elapsed));
        deadline.put_off(9);
        assert_eq!(deadline.within(async { 7 }).await, Ok(7));
        assert!(deadlines.free.borrow().is_empty());
    }
}
