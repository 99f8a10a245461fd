//! Whole joins over in-memory streams.

use std::sync::Arc;

use rustbalance_gossip::codec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::frame;
use crate::join::message::FromPublisher;
use crate::join::task::redeem_within;

fn pair() -> (crate::stream::BoxStream, crate::stream::BoxStream) {
    let (near, far) = tokio::io::duplex(1000);
    (Box::new(near), Box::new(far))
}

fn door(limits: DoorLimits) -> Door {
    Door::new(tokio::sync::watch::channel(limits).1)
}

/// Runs a join at a door, directly or carried by a worker.
async fn at_door(
    door: &Door,
    host: &TestPublisher,
    token: &Token,
    node: &NodeSecret,
    carried: bool,
) -> Result<Joined, JoinError> {
    let (near, mut far) = pair();
    let carrier = carried.then(|| {
        let (inner, publisher) = pair();
        let joiner = std::mem::replace(&mut far, publisher);
        tokio::spawn(carry(joiner, inner))
    });
    let (joined, _) = tokio::join!(redeem(near, token, node, host.cluster(), || NOW), door.admit(far, host));
    if let Some(carrier) = carrier {
        let (there, back) = carrier.await.unwrap();
        assert!(there > 200 && back > 100);
    }
    joined
}

#[tokio::test(start_paused = true)]
async fn a_node_joins_directly_and_through_a_carrier() {
    let (host, door) = (TestPublisher::new(), door(DoorLimits::default()));
    for (carried, role) in [(false, Role::Publisher), (true, Role::Publisher), (true, Role::Worker)] {
        let token = host.invite(role, 1);
        let joined = at_door(&door, &host, &token, &node(), carried).await.unwrap();
        assert_eq!(joined.secrets.is_some(), role == Role::Publisher);
    }
    assert_eq!(host.recorded(), 3);
}

#[tokio::test(start_paused = true)]
async fn two_joins_at_once_with_one_token_make_one_member() {
    let (host, door) = (TestPublisher::new(), door(DoorLimits::default()));
    let (token, one, two) = (host.invite(Role::Worker, 1), node(), node());
    let (one, two) =
        tokio::join!(at_door(&door, &host, &token, &one, false), at_door(&door, &host, &token, &two, true));
    assert!(one.is_ok() != two.is_ok());
    assert_eq!(refusal(if one.is_ok() { two } else { one }), JoinRefusal::UsedUp { uses: 1 });
    assert_eq!(host.recorded(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_join_that_cannot_be_recorded_is_refused_and_can_be_tried_again() {
    let (host, door) = (TestPublisher::new(), door(DoorLimits::default()));
    let (token, node) = (host.invite(Role::Worker, 1), node());
    host.broken_disk.store(true, Ordering::Relaxed);
    let error = at_door(&door, &host, &token, &node, false).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused(JoinRefusal::Failed)) && error.may_have_joined());
    host.broken_disk.store(false, Ordering::Relaxed);
    at_door(&door, &host, &token, &node, false).await.unwrap();
    assert_eq!(host.recorded(), 1);
}

/// The stream breaks just before the answer: the joiner keeps its key, asks again, and is a member
/// once.
#[tokio::test(start_paused = true)]
async fn an_answer_lost_on_the_way_is_asked_for_again() {
    let (host, door) = (Arc::new(TestPublisher::new()), Arc::new(door(DoorLimits::default())));
    let (token, node) = (host.invite(Role::Worker, 1), node());
    let (near, mut carried) = pair();
    let (mut inner, far) = pair();
    let admitted = tokio::spawn({
        let (host, door) = (Arc::clone(&host), Arc::clone(&door));
        async move { door.admit(far, &*host).await }
    });
    let carrier = tokio::spawn(async move {
        for _ in 0..2 {
            let frame = frame::read(&mut carried, frame::MAX).await.unwrap();
            frame::write(&mut inner, &frame).await.unwrap();
            let frame = frame::read(&mut inner, frame::MAX).await.unwrap();
            if frame.len() < 500 {
                frame::write(&mut carried, &frame).await.unwrap();
            }
        }
    });
    let error = redeem(near, &token, &node, host.cluster(), || NOW).await.unwrap_err();
    assert!(matches!(&error, JoinError::Unanswered(_)) && error.may_have_joined(), "{error}");
    assert!(error.to_string().contains("run the same command again"), "{error}");
    carrier.await.unwrap();
    assert!(matches!(admitted.await.unwrap(), Some(Outcome::Admitted { again: false, .. })));
    at_door(&door, &host, &token, &node, false).await.unwrap();
    assert_eq!(host.recorded(), 1);
}

/// A carrier forwards Redeem and forges a refusal: the joiner is a member, and must not delete its
/// key.
#[tokio::test(start_paused = true)]
async fn a_refusal_that_a_carrier_forges_does_not_cost_the_joiner_its_key() {
    for made_up in [JoinRefusal::UnknownToken, JoinRefusal::Evicted, JoinRefusal::UsedUp { uses: 1 }] {
        let (host, door) = (TestPublisher::new(), door(DoorLimits::default()));
        let (token, node) = (host.invite(Role::Worker, 1), node());
        let (near, mut carried) = pair();
        let (mut inner, far) = pair();
        let carrier = async {
            for frame_from_publisher in ["challenge", "answer"] {
                let frame = frame::read(&mut carried, frame::MAX).await.unwrap();
                frame::write(&mut inner, &frame).await.unwrap();
                let mut frame = frame::read(&mut inner, frame::MAX).await.unwrap();
                if frame_from_publisher == "answer" {
                    frame = codec::encode(&FromPublisher::Refused(made_up.clone())).unwrap();
                }
                frame::write(&mut carried, &frame).await.unwrap();
            }
            drop((carried, inner));
        };
        let (joined, _, ()) =
            tokio::join!(redeem(near, &token, &node, host.cluster(), || NOW), door.admit(far, &host), carrier);
        let error = joined.unwrap_err();
        assert!(error.may_have_joined(), "{error}");
        assert_eq!(host.recorded(), 1);
        at_door(&door, &host, &token, &node, false).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn silent_and_malformed_joins_lose_their_places() {
    let limits = DoorLimits { patience: Duration::from_millis(300), ..DoorLimits::default() };
    let (host, door) = (Arc::new(TestPublisher::new()), Arc::new(door(limits)));
    let mut silent = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..16 {
        let (near, far) = pair();
        silent.push(near);
        let (host, door) = (Arc::clone(&host), Arc::clone(&door));
        waiting.push(tokio::spawn(async move { door.admit(far, &*host).await }));
    }
    tokio::task::yield_now().await;
    let (token, node) = (host.invite(Role::Worker, 1), node());
    let error = at_door(&door, &host, &token, &node, false).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused(JoinRefusal::Busy)), "{error}");
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), None);
    }
    // A frame that announces more than is allowed, from a joiner that hangs up.
    let (mut near, far) = pair();
    near.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let refused = door.admit(far, &*host);
    let read = async move {
        let frame = frame::read(&mut near, frame::MAX).await.unwrap();
        assert!(matches!(codec::decode(&frame, 100), Ok(FromPublisher::Refused(JoinRefusal::Malformed))));
    };
    tokio::join!(read, async { assert!(refused.await.is_some()) });
    at_door(&door, &host, &token, &node, false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_joins_is_refused_beyond_the_burst() {
    let host = TestPublisher::new();
    let door = door(DoorLimits { burst: 4, every: Duration::from_secs(1 << 30), ..DoorLimits::default() });
    let mut busy = 0;
    for _ in 0..100 {
        let (near, far) = pair();
        drop(near);
        busy += usize::from(door.admit(far, &host).await == Some(Outcome::Refused(JoinRefusal::Busy)));
    }
    assert_eq!(busy, 96);
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_a_publisher_says_so_and_a_dead_cluster_times_out() {
    let (host, node) = (TestPublisher::new(), node());
    let token = host.invite(Role::Worker, 1);
    let (near, far) = pair();
    let (joined, ()) =
        tokio::join!(redeem(near, &token, &node, host.cluster(), || NOW), refuse(far, JoinRefusal::NoPublisher));
    assert_eq!(refusal(joined), JoinRefusal::NoPublisher);
    let (near, _far) = pair();
    let limit = Duration::from_millis(50);
    let error = redeem_within(limit, near, &token, &node, host.cluster(), || NOW).await.unwrap_err();
    assert!(matches!(error, JoinError::Timeout(_)) && !error.may_have_joined(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_carrier_carries_no_more_than_a_join() {
    let ((mut joiner, near), (far, mut publisher)) = (pair(), pair());
    let carrier = tokio::spawn(carry(near, far));
    let flood = tokio::spawn(async move { while joiner.write_all(&[0; 1000]).await.is_ok() {} });
    let mut carried = Vec::new();
    publisher.read_to_end(&mut carried).await.unwrap();
    drop(publisher);
    let (there, _) = carrier.await.unwrap();
    flood.await.unwrap();
    assert!(there < 170_000 && carried.len() as u64 == there, "{there}");
}
