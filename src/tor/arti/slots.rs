//! Places that are few: so many rendezvous in the making, so many circuits open, node-wide.
//!
//! The bound is given with each request, not kept, so that every caller brings its own limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How many places are taken.
#[derive(Default)]
pub(super) struct Slots {
    taken: AtomicUsize,
    freed: Notify,
}

/// One taken place; free again when dropped.
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    /// A place if fewer than `most` are taken.
    pub(super) fn try_take(self: &Arc<Self>, most: usize) -> Option<Slot> {
        let add = |taken: usize| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok().map(|_| Slot(Arc::clone(self)))
    }

    /// A place, as soon as fewer than `most` are taken.
    pub(super) async fn take(self: &Arc<Self>, most: usize) -> Slot {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Listen first and look then: a place freed in between must not be missed.
            freed.as_mut().enable();
            if let Some(slot) = self.try_take(most) {
                return slot;
            }
            freed.await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_gets_the_place_that_is_freed() {
        let slots = Arc::new(Slots::default());
        let first = slots.try_take(1).unwrap();
        assert!(slots.try_take(1).is_none());
        let waiting = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.take(1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        let second = waiting.await.unwrap();
        assert!(slots.try_take(1).is_none());
        drop(second);
        assert!(slots.try_take(1).is_some());
    }
}
