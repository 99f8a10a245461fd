//! This node's state for one service: its introduction points, its fitness to serve clients, and
//! what it has published.

use crate::record::{
    Fitness, IntroPoint, MAX_INTRO_POINTS, MAX_PERIODS, OutOfBounds, PointNonce, PublishedPeriod, ServedPoint,
    check_points,
};

/// A service that this node serves.
#[derive(Debug, Default)]
pub(super) struct Serving {
    points: Vec<IntroPoint>,
    nonces: Vec<PointNonce>,
    /// True if its target passes its health check.
    ready: bool,
    /// True if the service was healthy at some time since this process started.
    been_healthy: bool,
    announced: Option<(Fitness, Vec<IntroPoint>)>,
}

impl Serving {
    /// Sets the introduction points, the preferred ones first; those beyond [`MAX_INTRO_POINTS`]
    /// are dropped.
    ///
    /// # Errors
    /// A point may not be listed in a descriptor; the earlier points then stay.
    pub(super) fn set_points(&mut self, mut served: Vec<ServedPoint>) -> Result<(), OutOfBounds> {
        served.truncate(MAX_INTRO_POINTS);
        let (points, nonces): (Vec<_>, Vec<_>) = served.into_iter().map(|it| (it.point, it.nonce)).unzip();
        check_points(&points)?;
        (self.points, self.nonces) = (points, nonces);
        Ok(())
    }

    pub(super) fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// The node's fitness for the service; `draining`: the whole node drains.
    pub(super) fn fitness(&self, draining: bool) -> Fitness {
        let waits = !self.points.is_empty();
        match (waits, self.ready) {
            _ if draining => Fitness::Draining,
            (true, true) => Fitness::Healthy,
            (true, false) if self.been_healthy => Fitness::Degraded,
            _ => Fitness::Down,
        }
    }

    /// Whether the points or the fitness differ from those announced last. False until this process
    /// has its first introduction point: an empty record would replace the one of the previous
    /// process, which names the points at which publishers stand in.
    pub(super) fn has_news(&mut self, draining: bool) -> bool {
        let fitness = self.fitness(draining);
        self.been_healthy |= fitness == Fitness::Healthy;
        match &self.announced {
            None => !self.points.is_empty(),
            Some((before, points)) => *before != fitness || *points != self.points,
        }
    }

    /// Returns the values to announce, which count as announced from now on.
    pub(super) fn announce(&mut self, draining: bool) -> (Fitness, Vec<IntroPoint>, Vec<PointNonce>) {
        let fitness = self.fitness(draining);
        self.announced = Some((fitness, self.points.clone()));
        (fitness, self.points.clone(), self.nonces.clone())
    }

    /// True once this process has announced the service.
    pub(super) fn is_announced(&self) -> bool {
        self.announced.is_some()
    }
}

/// A service that this node publishes, or has published.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    /// The periods on the directories, at most [`MAX_PERIODS`].
    pub(super) periods: Vec<PublishedPeriod>,
    /// This node holds the lease and cannot publish this service.
    pub(super) cannot_publish: bool,
}

impl Publishing {
    /// Sets the periods on the directories. The disk knows more periods than one record may name:
    /// the newest are kept.
    pub(super) fn set_published(&mut self, mut periods: Vec<PublishedPeriod>) {
        periods.sort_by_key(|it| it.period.start());
        periods.drain(..periods.len().saturating_sub(MAX_PERIODS));
        self.periods = periods;
        self.cannot_publish = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{point, served};

    fn serving(points: u32) -> Serving {
        let mut serving = Serving::default();
        serving.set_points((0..points).map(|n| served(point(n, n))).collect()).unwrap();
        serving
    }

    #[test]
    fn a_service_is_down_until_its_target_answers_and_degraded_when_it_fails_later() {
        let mut serving = serving(2);
        assert_eq!(serving.fitness(false), Fitness::Down);
        serving.set_ready(true);
        assert!(serving.has_news(false));
        assert_eq!((serving.fitness(false), serving.fitness(true)), (Fitness::Healthy, Fitness::Draining));
        serving.set_ready(false);
        assert_eq!(serving.fitness(false), Fitness::Degraded);
        serving.set_points(Vec::new()).unwrap();
        assert_eq!(serving.fitness(false), Fitness::Down);
    }

    #[test]
    fn only_changes_are_announced_and_none_before_the_first_point() {
        let mut none = Serving::default();
        none.set_ready(true);
        assert!(!none.has_news(false) && !none.has_news(true));
        let mut serving = serving(1);
        assert!(serving.has_news(false));
        assert_eq!(serving.announce(false).0, Fitness::Down);
        assert!(!serving.has_news(false));
        serving.set_ready(true);
        assert!(serving.has_news(false));
        assert_eq!(serving.announce(false).0, Fitness::Healthy);
        serving.set_points(vec![served(point(7, 7))]).unwrap();
        assert!(serving.has_news(false));
        serving.announce(false);
        assert!(!serving.has_news(false) && serving.has_news(true));
    }

    #[test]
    fn points_that_no_descriptor_may_name_are_not_announced() {
        let mut serving = serving(2);
        assert!(serving.set_points(vec![served(point(1, 1)), served(point(2, 1))]).is_err());
        assert_eq!(serving.announce(false).1.len(), 2);
        serving.set_points((0..30).map(|n| served(point(n, n))).collect()).unwrap();
        assert_eq!(serving.announce(false).1.len(), MAX_INTRO_POINTS);
    }
}
