//! The task on the fake engine: it takes over a point of a silent node, and gives it back.

use std::time::Duration;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::{PointNonce, ServedPoint};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::*;
use crate::keys::NodeSecret;
use crate::tor::fake::tests::limits;
use crate::tor::fake::{FakeEngine, FakeNet};

const LIMIT: Duration = Duration::from_secs(20);

fn authority() -> AuthoritySecret {
    AuthoritySecret::from_seed(&Zeroizing::new([1; 32]))
}

/// A node's Tor client, and the keys of its point.
struct Owner {
    engine: Arc<FakeEngine>,
    node: NodeId,
    seed: PointSeed,
    nonce: PointNonce,
    service: ServiceId,
}

impl Owner {
    fn new(net: &FakeNet) -> Self {
        let node = NodeSecret::from_seed(&Zeroizing::new([2; 32])).node_id();
        let (seed, nonce) = (PointSeed::derive(&authority(), node), PointNonce(FixedBytes([3; 16])));
        Self { engine: net.engine(), node, seed, nonce, service: ServiceId::from_public_key(*node.public_key()) }
    }

    async fn open(&self, relay: RelayChoice) -> Box<dyn OpenIntroPoint> {
        let keys = IntroPointKeys { secrets: self.seed.secrets(self.nonce), replays: Arc::new(ReplayLog::ephemeral()) };
        let (streams, _) = mpsc::channel(1);
        let request = IntroRequest { service: self.service, keys, relay, limits: limits() };
        self.engine.open_intro_point(request, streams).await.unwrap()
    }
}

/// A running task that is asked to stand in at these points.
fn standing_in(net: &FakeNet, owner: &Owner, wanted: &[UnattendedPoint]) -> watch::Receiver<Vec<StandInPoint>> {
    let (wanted, wanted_watch) = watch::channel(wanted.iter().cloned().collect());
    let (status, shown) = watch::channel(Vec::new());
    let (streams, _) = mpsc::channel(1);
    let stand_in = StandIn {
        engine: net.engine(),
        service: owner.service,
        authority: authority(),
        limits: limits(),
        streams,
        wanted: wanted_watch,
        keeping: watch::channel(Keeping::All).1,
        status,
    };
    tokio::spawn(async move {
        let _wanted = wanted;
        stand_in.run(CancellationToken::new()).await
    });
    shown
}

#[tokio::test(start_paused = true)]
async fn a_silent_nodes_point_is_taken_and_goes_back_to_it() {
    let net = FakeNet::new(5, 12);
    let owner = Owner::new(&net);
    let own = owner.open(RelayChoice::AnyBut(Default::default())).await;
    let served = ServedPoint { point: own.describe(), nonce: owner.nonce };
    let unattended = UnattendedPoint { node: owner.node, service: owner.service, served };
    let mut shown = standing_in(&net, &owner, std::slice::from_ref(&unattended));
    timeout(LIMIT, own.lost()).await.expect("the stand-in did not take the point");
    let taken = timeout(LIMIT, shown.wait_for(|points| !points.is_empty())).await.unwrap().unwrap().clone();
    let relay = own.describe().relay;
    assert_eq!(taken, [StandInPoint { node: owner.node, relay, introductions: 0 }]);

    let own = owner.open(RelayChoice::Exactly(relay)).await;
    timeout(LIMIT, shown.wait_for(Vec::is_empty)).await.unwrap().unwrap();
    // The point is still assigned to the stand-in, which leaves it alone for a while.
    assert!(timeout(Duration::from_secs(4), own.lost()).await.is_err());
    timeout(LIMIT, own.lost()).await.expect("the stand-in did not take the point again");
}
