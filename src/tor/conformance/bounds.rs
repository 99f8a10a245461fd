//! What clients can make a node hold: bounds on streams and circuits.

use super::*;

/// Streams above a circuit's limit are refused and counted, and clients that are met are, too.
pub(crate) async fn streams_on_one_circuit_are_bounded(stage: &dyn Stage) {
    let (host, master) = (ready(stage).await, new_master());
    let limits = Arc::new(ServiceGuard::fixed(ServiceLimits { streams_per_circuit: 1, ..few() }));
    let (streams, incoming) = mpsc::channel(16);
    let point = open(stage, &*host, &master, RelayChoice::AnyBut(BTreeSet::new()), &limits, new_keys(), streams).await;
    serve(incoming);
    publish(stage, &*host, &master, &[point.describe()], 0).await;
    let address = master.service_id().address();
    let (first, client) = visit(stage, address).await;
    let counted = &limits.refused.service;
    assert!(counted.introductions.load(Ordering::Relaxed) >= 1 && counted.rendezvous.load(Ordering::Relaxed) >= 1);
    assert!(counted.rendezvous_time.values().buckets.iter().any(|(_, count)| *count > 0));
    fails(stage, "a second stream", client.dial(address, OPEN, stage.patience())).await;
    assert!(limits.refused.get(Refused::Stream) >= 1);
    echoes(first).await;
    let freed = async || client.dial(address, OPEN, stage.patience()).await;
    echoes(eventually(stage, "a stream after the first has ended", freed).await).await;
}

/// There are never more open circuits than allowed. While all of them are in use, other clients are
/// dropped and counted; an idle circuit is closed for a new one.
pub(crate) async fn rendezvous_are_bounded(stage: &dyn Stage) {
    let (host, master) = (ready(stage).await, new_master());
    let limits = Arc::new(ServiceGuard::fixed(ServiceLimits { open_rendezvous: 1, ..few() }));
    let (streams, incoming) = mpsc::channel(16);
    let point = open(stage, &*host, &master, RelayChoice::AnyBut(BTreeSet::new()), &limits, new_keys(), streams).await;
    serve(incoming);
    publish(stage, &*host, &master, &[point.describe()], 0).await;
    let address = master.service_id().address();
    let guest = async |limit| stage.guest(address, OPEN, limit).await;
    let first = eventually(stage, "the first client", async || guest(stage.patience()).await).await;
    let Visitor { mut stream, life: _life } = first;
    assert_eq!(host.client_circuits().open, 1);
    assert_eq!(limits.refused.service.rendezvous_open.load(Ordering::Relaxed), 1);
    let in_use = async {
        while stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok() {
            stream.read_exact(&mut [0]).await.unwrap();
            sleep(Duration::from_millis(200)).await;
        }
        panic!("a circuit in use was closed");
    };
    tokio::select! {
        () = in_use => {}
        () = fails(stage, "a second client", async { guest(stage.short()).await.map(|guest| guest.stream) }) => {}
    }
    assert!(limits.refused.get(Refused::Introduction) >= 1);
    let third = async || guest(stage.short()).await;
    let third = eventually(stage, "a client after the first is idle", third).await;
    assert!(limits.refused.get(Refused::Circuit) >= 1);
    let ended = timeout(stage.patience(), stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "the idle client still has its circuit");
    echoes(third.stream).await;
}

/// Open circuits are shown. One ends with its streams when too many were refused on it, and when
/// the operator closes it.
pub(crate) async fn circuits_are_shown_and_closed(stage: &dyn Stage) {
    let (host, master) = (ready(stage).await, new_master());
    let few = ServiceLimits { streams_per_circuit: 1, refusals_per_circuit: Some(2), ..few() };
    let (limits, (streams, incoming)) = (Arc::new(ServiceGuard::fixed(few)), mpsc::channel(16));
    let point = open(stage, &*host, &master, RelayChoice::AnyBut(BTreeSet::new()), &limits, new_keys(), streams).await;
    serve(incoming);
    publish(stage, &*host, &master, &[point.describe()], 0).await;
    let address = master.service_id().address();
    let ends = async |mut stream: BoxStream| {
        let ended = timeout(stage.patience(), stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "the stream is still open");
    };
    let (first, client) = visit(stage, address).await;
    for _ in 0..2 {
        fails(stage, "a second stream", client.dial(address, OPEN, stage.patience())).await;
    }
    ends(first).await;
    assert_eq!(limits.refused.get(Refused::Abuse), 1);

    let again = async || client.dial(address, OPEN, stage.patience()).await;
    let mut second = eventually(stage, "a stream on a new circuit", again).await;
    second.write_all(b"hello").await.unwrap();
    second.flush().await.unwrap();
    second.read_exact(&mut [0; 5]).await.unwrap();
    let open = host.open_client_circuits();
    let circuit = open.iter().find(|circuit| circuit.streams == 1).unwrap_or_else(|| panic!("{open:?}"));
    assert!((10..1000).contains(&circuit.bytes), "{circuit:?}");
    assert!(host.close_client_circuit(circuit.id) && !host.close_client_circuit(circuit.id));
    ends(second).await;
    assert!(host.open_client_circuits().iter().all(|left| left.id != circuit.id));
}
