//! Order between streams and the host: what is missing is reported, what is there passes.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, PushKernelArg, result};
use gpu_emulator::Device;

use crate::device::{Loaded, load, shape};

const COUNT: usize = 1024;

fn ascending() -> Vec<f32> {
    (0..COUNT).map(|i| i as f32).collect()
}

fn doubles(
    module: &Loaded,
    stream: &Arc<CudaStream>,
    to: &mut CudaSlice<f32>,
    from: &CudaSlice<f32>,
) -> Result<(), DriverError> {
    let kernel = module.kernel("doubles");
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(to).arg(from);
    unsafe { launch.launch(shape(COUNT as u32 / 256, 256)) }.map(drop)
}

/// A producer and a consumer on two streams; `order` may put a wait between.
fn two_streams(order: impl Fn(&Arc<CudaStream>, &Arc<CudaStream>)) -> Result<Vec<f32>, DriverError> {
    let module = load("wrong");
    // Else cudarc puts a wait wherever a buffer goes from stream to stream.
    unsafe { module.context.disable_event_tracking() };
    let (one, two) = (module.context.new_stream()?, module.context.new_stream()?);
    let from = one.clone_htod(&ascending())?;
    let (mut middle, mut to) = (one.alloc_zeros::<f32>(COUNT)?, two.alloc_zeros::<f32>(COUNT)?);
    one.synchronize()?;
    two.synchronize()?;
    doubles(&module, &one, &mut middle, &from)?;
    order(&one, &two);
    doubles(&module, &two, &mut to, &middle)?;
    let found = two.clone_dtoh(&to);
    module.context.synchronize()?;
    found
}

#[test]
fn a_wait_between_streams() {
    let wanted: Vec<f32> = (0..COUNT).map(|i| 4.0 * i as f32).collect();
    type Order = fn(&Arc<CudaStream>, &Arc<CudaStream>);
    let waits: [Order; 3] = [
        |one, two| two.wait(&one.record_event(None).unwrap()).unwrap(),
        |one, two| two.join(one).unwrap(),
        |one, _| one.synchronize().unwrap(),
    ];
    for wait in waits {
        for device in [Device::new(), Device::new().eager()] {
            assert!(device.run(|| assert_eq!(two_streams(wait).unwrap(), wanted)).messages.is_empty());
        }
    }
}

#[test]
fn a_missing_wait_is_reported() {
    // As late as it may, the consumer runs first; at once, the producer does: it is found either way.
    for device in [Device::new(), Device::new().eager()] {
        let report = device.run(|| {
            let error = two_streams(|_, _| ()).unwrap_err();
            assert_eq!(error.0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
        });
        let [message] = &report.messages[..] else { panic!("{:?}", report.messages) };
        for word in [
            "kernel doubles (stream 0x",
            "allocation 2, which kernel doubles (stream 0x",
            "a wait between the streams is missing",
        ] {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
}

#[test]
fn what_another_stream_has_not_written_yet() {
    let report = Device::new().run(|| {
        let module = load("wrong");
        unsafe { module.context.disable_event_tracking() };
        let (one, two) = (module.context.new_stream().unwrap(), module.context.new_stream().unwrap());
        let from = one.clone_htod(&ascending()).unwrap();
        let mut middle = unsafe { one.alloc::<f32>(COUNT) }.unwrap();
        doubles(&module, &one, &mut middle, &from).unwrap();
        assert!(two.clone_dtoh(&middle).is_err());
    });
    let message = report.messages.join("\n");
    assert!(
        message.contains("was never written; other streams have not run yet: ") && message.contains("kernel doubles"),
        "{message}"
    );
}

/// What the host waits for as a whole runs the newest stream first.
#[test]
fn the_newest_stream_runs_first() {
    let report = Device::new().run(|| {
        let module = load("wrong");
        unsafe { module.context.disable_event_tracking() };
        let (one, two) = (module.context.new_stream().unwrap(), module.context.new_stream().unwrap());
        let from = one.clone_htod(&ascending()).unwrap();
        let mut middle = unsafe { one.alloc::<f32>(COUNT) }.unwrap();
        let mut to = unsafe { two.alloc::<f32>(COUNT) }.unwrap();
        doubles(&module, &one, &mut middle, &from).unwrap();
        doubles(&module, &two, &mut to, &middle).unwrap();
        assert!(module.context.synchronize().is_err());
    });
    let message = report.messages.join("\n");
    let first = "reads unwritten memory: byte 0 (0x";
    assert!(
        message.contains(first) && message.contains("have not run yet: copy to the device, kernel doubles"),
        "{message}"
    );
}

#[test]
fn pinned_memory_is_late() {
    Device::new().run(|| {
        let module = load("wrong");
        let stream = &module.stream;
        let mut pinned = unsafe { module.context.alloc_pinned::<f32>(COUNT) }.unwrap();
        let host = pinned.as_mut_ptr().unwrap();
        // SAFETY: as many floats as were allocated, and nothing else uses them.
        let host = unsafe { std::slice::from_raw_parts_mut(host, COUNT) };
        host.copy_from_slice(&ascending());
        let mut on = stream.alloc_zeros::<f32>(COUNT).unwrap();
        {
            let (to, _guard) = on.device_ptr_mut(stream);
            unsafe { result::memcpy_htod_async(to, host, stream.cu_stream()) }.unwrap();
        }
        // The copy has not run yet: this is what it will find.
        host[3] = -1.0;
        assert_eq!(stream.clone_dtoh(&on).unwrap()[..5], [0.0, 1.0, 2.0, -1.0, 4.0]);
        {
            let (from, _guard) = on.device_ptr(stream);
            unsafe { result::memcpy_dtoh_async(host, from, stream.cu_stream()) }.unwrap();
        }
        assert!(host.iter().all(|x| x.is_nan()), "there before the stream was waited for");
        stream.synchronize().unwrap();
        assert_eq!(host[..5], [0.0, 1.0, 2.0, -1.0, 4.0]);
    });
}

#[test]
fn events_have_times() {
    Device::new().run(|| {
        let module = load("wrong");
        let flags = Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT);
        let start = module.stream.record_event(flags).unwrap();
        module.try_out("right", shape(1, 256)).unwrap();
        let end = module.stream.record_event(flags).unwrap();
        let took = start.elapsed_ms(&end).unwrap();
        assert!(took > 0.0 && took < 1e4, "{took}");
    });
}

#[test]
fn freed_memory() {
    let report = Device::new().run(|| {
        let module = load("wrong");
        let from = module.stream.clone_htod(&ascending()).unwrap();
        let pointer = from.device_ptr(&module.stream).0;
        drop(from);
        module.stream.synchronize().unwrap();
        let mut host = [0f32; 4];
        let error = unsafe { result::memcpy_dtoh_sync(&mut host, pointer + 16) }.unwrap_err();
        assert_eq!(error.0, CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(unsafe { result::free_sync(pointer) }.is_err());
    });
    let [read, free] = &report.messages[..] else { panic!("{:?}", report.messages) };
    assert!(read.contains("offset 16 of allocation 1 of 4096 bytes, which was freed"), "{read}");
    assert!(free.contains("was freed already"), "{free}");
}
