//! A search on a device, from one start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustbalance_vanity::remote::{Candidate, RemoteSearch};
use rustbalance_vanity::{Hit, Prefixes};
use wgpu::{BindGroup, Buffer, BufferUsages};

use crate::GpuError;
use crate::device::{Device, empty};
use crate::shader::{LIMBS, STATE_WORDS, limbs};

/// A batch that takes less is doubled: the device waits for the processor between batches.
const SHORT: Duration = Duration::from_millis(40);
/// Most passes of a batch.
const MOST_PASSES: u64 = 64;
/// Integers of a candidate in a report. Before all candidates comes their number.
const CANDIDATE_WORDS: u64 = 4;

/// Bytes of this number of integers.
const fn bytes(words: u64) -> u64 {
    words * size_of::<u32>() as u64
}

/// What a batch of passes has done.
#[derive(Debug)]
pub struct Batch {
    /// Keys that were tested.
    pub tested: u64,
    /// The keys that were searched for. Each was computed again by the processor.
    pub hits: Vec<Hit>,
}

/// A search from one start.
#[derive(Debug)]
pub struct Search {
    device: Arc<Device>,
    search: RemoteSearch,
    group: BindGroup,
    report: Buffer,
    /// A copy of the report that the processor can read.
    read: Buffer,
    /// Passes that are done, and of the next batch.
    done: u64,
    passes: u64,
}

impl Search {
    /// A search of keys `start + 8 n B`, n = 0, 1, ...
    ///
    /// # Errors
    /// If the start is not a point of the group, or if the device has failed.
    pub fn new(device: &Arc<Device>, start: &[u8; 32], prefixes: &Arc<Prefixes>) -> Result<Self, GpuError> {
        let search = RemoteSearch::new(start, prefixes, device.layout.lanes)?;
        let fine: Vec<u32> = prefixes.fine().iter().flat_map(|bits| [*bits as u32, (bits >> 32) as u32]).collect();
        let size = bytes(1 + CANDIDATE_WORDS * u64::from(device.layout.capacity));
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let report = empty(&device.device, size, usage);
        let read = empty(&device.device, size, BufferUsages::COPY_DST | BufferUsages::MAP_READ);
        let (fine, wanted) = (device.filled(&fine), device.filled(prefixes.low_bits().as_flattened()));
        let state = device.filled(&state(&search, device.layout.lanes as usize));
        let buffers = [&device.table, &fine, &wanted, &state, &device.steps, &report];
        let entries: Vec<_> = buffers
            .iter()
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group = device.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &device.bindings,
            entries: &entries,
        });
        device.check()?;
        Ok(Self { device: Arc::clone(device), search, group, report, read, done: 0, passes: 1 })
    }

    /// Runs a batch of passes, which together take about a tenth of a second, or one that takes
    /// longer.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn run(&mut self) -> Result<Batch, GpuError> {
        let begun = Instant::now();
        self.submit();
        let (count, candidates) = self.report()?;
        let tested = self.passes * self.search.keys_per_pass();
        self.done += self.passes;
        if count > self.device.layout.capacity {
            self.passes = (self.passes / 2).max(1);
        } else if begun.elapsed() < SHORT {
            self.passes = (2 * self.passes).min(MOST_PASSES);
        }
        Ok(Batch { tested, hits: self.search.hits(candidates) })
    }

    /// Hands a batch to the device.
    fn submit(&self) {
        let Device { device, queue, pipelines, layout, .. } = &*self.device;
        queue.write_buffer(&self.report, 0, &[0; 4]);
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_bind_group(0, &self.group, &[]);
            for _ in 0..self.passes {
                for pipeline in pipelines {
                    pass.set_pipeline(pipeline);
                    pass.dispatch_workgroups(layout.lanes / layout.group, 1, 1);
                }
            }
        }
        encoder.copy_buffer_to_buffer(&self.report, 0, &self.read, 0, self.report.size());
        queue.submit([encoder.finish()]);
    }

    /// Waits for the device. Returns how many candidates it has seen, and those that fitted into
    /// its report.
    fn report(&self) -> Result<(u32, Vec<Candidate>), GpuError> {
        let capacity = self.device.layout.capacity;
        self.device.read(&self.read, |words| {
            let count = words.next().unwrap_or(0);
            let words: Vec<u32> = words.take((count.min(capacity) * 4) as usize).collect();
            (count, words.chunks_exact(4).map(|words| self.candidate(words)).collect())
        })
    }

    /// The struct `Candidate` of `pass.wgsl`.
    fn candidate(&self, words: &[u32]) -> Candidate {
        let [passes, lane, index, minus] = std::array::from_fn(|k| words[k]);
        // The device counts passes in 32 bits.
        let pass = self.done + u64::from(passes.wrapping_sub(self.done as u32));
        Candidate { pass, lane, index, minus: minus != 0 }
    }
}

/// The first state of all lanes, in the order of `pass.wgsl`.
fn state(search: &RemoteSearch, lanes: usize) -> Vec<u32> {
    let mut state = vec![0; STATE_WORDS * lanes];
    for (index, lane) in search.lanes().iter().enumerate() {
        let numbers = lane.centre.iter().chain(&lane.next).flat_map(limbs);
        for (word, limb) in numbers.enumerate() {
            state[word * lanes + index] = limb;
        }
    }
    debug_assert_eq!(6 * LIMBS + 2 * LIMBS + 1, STATE_WORDS);
    state
}
