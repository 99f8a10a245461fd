//! Frames, and the messages in them that members exchange over an open link.

use rustbalance::frame::{self, FrameError};
use rustbalance::link::Frame;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::codec;

use super::world::world;
use super::{Seed, block_on};

/// A stream of frames, read with one of the size limits in use; the first byte chooses the limit.
pub(crate) fn frame(bytes: &[u8]) -> bool {
    let Some((&bound, mut stream)) = bytes.split_first() else { return false };
    let max = [64, frame::MAX_UNPROVEN, frame::MAX][usize::from(bound) % 3];
    let mut taken = false;
    block_on(async {
        loop {
            let before = stream;
            match frame::read(&mut stream, max).await {
                Ok(payload) => {
                    assert!(payload.len() <= max);
                    let mut again = Vec::new();
                    frame::write(&mut again, &payload).await.unwrap();
                    assert_eq!(again, before[..before.len() - stream.len()]);
                    taken |= message(&payload);
                }
                Err(FrameError::TooLong { size, max: bound }) => {
                    assert!(size > max && bound == max);
                    break;
                }
                Err(FrameError::Closed) => break,
                Err(FrameError::Io(error)) => panic!("a slice does not fail: {error}"),
            }
        }
    });
    taken
}

fn message(payload: &[u8]) -> bool {
    let Ok(message) = codec::decode::<Frame>(payload, frame::MAX) else { return false };
    let written = codec::encode(&message).unwrap();
    // A decoded message fits into a frame when it is encoded again.
    assert!(written.len() <= frame::MAX);
    let again: Frame = codec::decode(&written, frame::MAX).unwrap();
    assert_eq!(codec::encode(&again).unwrap(), written);
    true
}

pub(crate) fn frame_seeds() -> Vec<Seed> {
    let messages = [
        Frame::Ping(0),
        Frame::Pong(u64::MAX),
        Frame::Probe { number: 1, padding: VarBytes(vec![0; 30]) },
        Frame::Probed(u64::MAX),
        Frame::Gossip(VarBytes(vec![7; 40])),
        Frame::Push(VarBytes(vec![7; 40])),
        Frame::Discovery(world().discovery.offer()),
    ];
    let framed = |messages: &[Frame]| -> Vec<u8> {
        let mut bytes = vec![2];
        for message in messages {
            let payload = codec::encode(message).unwrap();
            bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
            bytes.extend(payload);
        }
        bytes
    };
    vec![
        Seed::good("all", framed(&messages)),
        Seed::good("ping", framed(&messages[..1])),
        Seed::good("discovery", framed(&messages[5..])),
        Seed::bad("too-long", [&[0][..], &65u32.to_be_bytes(), &[0; 65]].concat()),
        Seed::bad("cut", [&[2][..], &500u32.to_be_bytes(), &[1; 20]].concat()),
        // Claims to hold a byte string of four gigabytes.
        Seed::bad("boast", [&[2, 0, 0, 0, 14, 1][..], b"\xa1fGossip\x5a\xff\xff\xff\xff"].concat()),
    ]
}
