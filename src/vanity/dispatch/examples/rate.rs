//! The rate of a search: `rate PATH THREADS PREFIX SECONDS COUNT` searches until that time is over
//! or that number of keys is found, and prints the tested keys, the seconds and the found keys.
//! `rate` alone lists the paths that this processor can run. For `scripts/bench-vanity.sh`.

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::{EdwardsPoint, Scalar};
use rustbalance_vanity::{Path, Prefixes, Search, Table};
use rustbalance_vanity_dispatch::pass;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, threads, prefix, seconds, count] = arguments.as_slice() else {
        for path in Path::ALL.into_iter().filter(|path| path.is_available()) {
            writeln!(io::stdout(), "{path}")?;
        }
        return Ok(());
    };
    let (path, threads, count): (Path, u64, u64) = (path.parse()?, threads.parse()?, count.parse()?);
    let limit = Duration::from_secs_f64(seconds.parse()?);
    let (prefixes, table) = (Arc::new(Prefixes::new(&[prefix.parse()?])), Arc::new(Table::new()));
    let (tested, found) = (AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    // Different starts in each run and thread; no secret is worth anything here.
    let seed = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
    thread::scope(|scope| {
        for thread in 0..threads {
            let (prefixes, table, tested, found) = (&prefixes, &table, &tested, &found);
            scope.spawn(move || {
                let distance =
                    Scalar::from(seed) * Scalar::from(seed + 1) * Scalar::from(seed + 2 + u128::from(thread));
                let start: EdwardsPoint = ED25519_BASEPOINT_POINT * distance;
                let Ok(mut search) = Search::new(path, &start.compress().0, prefixes, table) else { return };
                while begun.elapsed() < limit && found.load(Relaxed) < count {
                    found.fetch_add(pass(&mut search).len() as u64, Relaxed);
                    tested.fetch_add(search.keys_per_pass(), Relaxed);
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    writeln!(io::stdout(), "{} {seconds} {}", tested.into_inner(), found.into_inner())?;
    Ok(())
}
