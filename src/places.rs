//! A semaphore whose bound may change at any time: each caller names the bound it wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of places that are taken.
#[derive(Debug, Default)]
pub(crate) struct Places(Arc<AtomicUsize>);

impl Places {
    /// Takes a place if fewer than `most` are taken.
    pub(crate) fn take(&self, most: usize) -> Option<Place> {
        let more = |taken| (taken < most).then_some(taken + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place(Arc::clone(&self.0)))
    }
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lowered_bound_holds_for_the_next_place_that_is_taken() {
        let places = Places::default();
        let taken: Vec<_> = std::iter::from_fn(|| places.take(3)).collect();
        assert_eq!(taken.len(), 3);
        assert!(places.take(2).is_none() && places.take(4).is_some());
        drop(taken);
        assert!(places.take(1).is_some());
    }
}
