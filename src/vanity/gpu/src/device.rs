//! A graphics processor, with the compiled shader.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use rustbalance_vanity::remote::{self, REACH};
use wgpu::{BindGroupLayout, Buffer, BufferUsages, ComputePipeline, DeviceType};

use crate::GpuError;
use crate::shader::{self, Layout, STEP_WORDS};

/// Candidates in a report: 1 MiB. More of them fit only with thousands of prefixes, or if most are
/// keys that were searched for, of which one is enough.
const CAPACITY: u32 = 1 << 16;
/// Bytes that a lane needs for the steps of a pass.
const STEP_BYTES: u64 = (REACH * STEP_WORDS * size_of::<u32>()) as u64;
/// A device that has not finished a batch of passes by then has failed. A pass takes less than a
/// second.
const PATIENCE: Duration = Duration::from_secs(60);
/// The three steps of a pass, in this order.
const STEPS: [&str; 3] = ["multiply", "turn", "test"];

/// A device that can search.
pub struct Device {
    name: String,
    pub(crate) layout: Layout,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) bindings: BindGroupLayout,
    pub(crate) pipelines: [ComputePipeline; 3],
    pub(crate) table: Buffer,
    pub(crate) steps: Buffer,
    failure: Failure,
}

/// The first error that the driver has reported.
#[derive(Debug, Clone, Default)]
struct Failure(Arc<Mutex<Option<String>>>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// Lanes of a device of this type, and of a workgroup. More lanes hide the latency of memory and of
/// carries, and need 40 KiB each.
fn size(kind: DeviceType) -> (u32, u32) {
    match kind {
        DeviceType::DiscreteGpu => (1 << 15, 64),
        DeviceType::IntegratedGpu | DeviceType::VirtualGpu | DeviceType::Other => (1 << 12, 64),
        DeviceType::Cpu => (1 << 6, 32),
    }
}

/// Among several devices the fastest are tried first. `None`: only by name, because a program that
/// imitates a device is slower than the processor's own search.
fn rank(kind: DeviceType) -> Option<u32> {
    match kind {
        DeviceType::DiscreteGpu => Some(0),
        DeviceType::VirtualGpu => Some(1),
        DeviceType::IntegratedGpu => Some(2),
        DeviceType::Other => Some(3),
        DeviceType::Cpu => None,
    }
}

impl Device {
    /// Opens the fastest device, or the first whose name contains `named`, and compiles the shader
    /// for it. That may take seconds.
    ///
    /// # Errors
    /// If there is no such device, or if it cannot run the search.
    pub fn open(named: &str) -> Result<Self, GpuError> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::VULKAN,
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let names: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let adapter = choose(adapters, named).ok_or_else(|| missing(named, &names))?;
        Self::with_adapter(&adapter)
    }

    fn with_adapter(adapter: &wgpu::Adapter) -> Result<Self, GpuError> {
        let (name, limits) = (adapter.get_info().name, adapter.limits());
        let failed = |reason: String| GpuError::Failed { name: name.clone(), reason };
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits.clone(), ..Default::default() };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| failed(error.to_string()))?;
        let failure = Failure::default();
        let reported = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| reported.set(error.to_string())));

        let (most, group) = size(adapter.get_info().device_type);
        let bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let fitting = u32::try_from(bytes / STEP_BYTES).unwrap_or(u32::MAX).min(most);
        let (lanes, steps) = steps(&device, fitting, group).ok_or(GpuError::Small { name: name.clone(), bytes })?;
        let layout = Layout { lanes, group, capacity: CAPACITY };
        let text = shader::text(layout);
        let bindings = bindings(&device);
        let pipelines = pipelines(&device, &bindings, text, STEPS);
        let numbers: Vec<u32> = remote::table().iter().flatten().flat_map(shader::limbs).collect();
        let table = filled(&device, &queue, &numbers);
        let opened = Self { name, layout, device, queue, bindings, pipelines, table, steps, failure };
        opened.check()?;
        Ok(opened)
    }

    /// The name that its driver gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The error of this device.
    pub(crate) fn failed(&self, reason: impl Into<String>) -> GpuError {
        GpuError::Failed { name: self.name.clone(), reason: reason.into() }
    }

    /// # Errors
    /// The first that the driver has reported.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        let reason = self.failure.0.lock().clone();
        reason.map_or(Ok(()), |reason| Err(self.failed(reason)))
    }

    /// Waits until the device has done what was submitted, and reads a buffer.
    ///
    /// # Errors
    /// If the device has failed.
    pub(crate) fn read<T>(
        &self,
        buffer: &Buffer,
        read: impl FnOnce(&mut dyn Iterator<Item = u32>) -> T,
    ) -> Result<T, GpuError> {
        let (sender, mapped) = mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone if the wait has failed.
            let _ = sender.send(result);
        });
        let waited = self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(PATIENCE) });
        self.check()?;
        waited.map_err(|error| self.failed(error.to_string()))?;
        mapped
            .try_recv()
            .map_err(|error| self.failed(error.to_string()))?
            .map_err(|error| self.failed(error.to_string()))?;
        let view = buffer.get_mapped_range(..).map_err(|error| self.failed(error.to_string()))?;
        let word = |word: &[u8]| word.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
        let result = read(&mut view.chunks_exact(4).map(word));
        drop(view);
        buffer.unmap();
        Ok(result)
    }

    /// A buffer with these integers.
    pub(crate) fn filled(&self, words: &[u32]) -> Buffer {
        filled(&self.device, &self.queue, words)
    }
}

impl Failure {
    fn set(&self, reason: String) {
        self.0.lock().get_or_insert(reason);
    }
}

fn choose(adapters: Vec<wgpu::Adapter>, named: &str) -> Option<wgpu::Adapter> {
    let named = named.to_lowercase();
    let suits = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        if named.is_empty() { rank(info.device_type).is_some() } else { info.name.to_lowercase().contains(&named) }
    };
    adapters.into_iter().filter(suits).min_by_key(|adapter| rank(adapter.get_info().device_type).unwrap_or(u32::MAX))
}

fn missing(named: &str, names: &[String]) -> GpuError {
    let found = match names {
        [] => "Vulkan shows no device: is its driver installed, and may this user open /dev/dri?".into(),
        names => format!("Vulkan shows {}, which must be named to be used", names.join(", ")),
    };
    let named = if named.is_empty() { String::new() } else { format!(" whose name contains {named:?}") };
    GpuError::Missing { named, found }
}

/// The memory for the steps of a pass, for the largest number of lanes that its memory allows.
fn steps(device: &wgpu::Device, most: u32, group: u32) -> Option<(u32, Buffer)> {
    let sizes = std::iter::successors(Some(most / group), |groups| Some(groups / 2));
    for lanes in sizes.take_while(|groups| *groups > 0).map(|groups| groups * group) {
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = empty(device, u64::from(lanes) * STEP_BYTES, BufferUsages::STORAGE);
        if pollster::block_on(scope.pop()).is_none() {
            return Some((lanes, buffer));
        }
    }
    None
}

/// A buffer of zeros.
pub(crate) fn empty(device: &wgpu::Device, size: u64, usage: BufferUsages) -> Buffer {
    device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
}

fn filled(device: &wgpu::Device, queue: &wgpu::Queue, words: &[u32]) -> Buffer {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let buffer = empty(device, bytes.len() as u64, BufferUsages::STORAGE | BufferUsages::COPY_DST);
    queue.write_buffer(&buffer, 0, &bytes);
    buffer
}

/// The bindings of `pass.wgsl`: three that it reads, and three that it writes.
fn bindings(device: &wgpu::Device) -> BindGroupLayout {
    let entries: Vec<_> = (0..6)
        .map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: binding < 3 },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

/// The shader's entry points of these names.
pub(crate) fn pipelines<const N: usize>(
    device: &wgpu::Device,
    bindings: &BindGroupLayout,
    text: String,
    names: [&str; N],
) -> [ComputePipeline; N] {
    let source = wgpu::ShaderSource::Wgsl(text.into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(bindings)],
        immediate_size: 0,
    });
    names.map(|name| {
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    })
}
