//! What can be set of a device.

use std::panic::catch_unwind;

use cudarc::cublas::CudaBlas;
use cudarc::driver::sys::{CUresult, is_culib_present};
use cudarc::driver::{CudaContext, CudaSlice, DriverError};
use cudarc::nvrtc::Ptx;
use gpu_emulator::{Device, Report};

use crate::device::{kernels, load, shape};

fn no_module() -> CUresult {
    CudaContext::new(0).unwrap().load_module(Ptx::from_file(kernels("wrong"))).unwrap_err().0
}

#[test]
fn no_driver() {
    Device::new().without_driver().run(|| {
        assert!(!unsafe { is_culib_present() } && !unsafe { cudarc::cublas::sys::is_culib_present() });
        assert!(catch_unwind(|| CudaContext::new(0)).is_err());
    });
}

#[test]
fn no_gpu() {
    Device::new().without_gpu().run(|| {
        assert!(unsafe { is_culib_present() });
        assert_eq!(CudaContext::device_count().unwrap_err().0, CUresult::CUDA_ERROR_NO_DEVICE);
        assert_eq!(CudaContext::new(0).unwrap_err().0, CUresult::CUDA_ERROR_NO_DEVICE);
    });
}

#[test]
fn an_old_driver() {
    Device::new().driver(11040).run(|| assert_eq!(no_module(), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
    let message = Device::new()
        .driver(11080)
        .run(|| assert_eq!(no_module(), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION))
        .messages
        .concat();
    assert!(message.contains("PTX 80 is newer than the driver"), "{message}");
}

#[test]
fn an_old_gpu() {
    Device::new().compute_capability(75).run(|| {
        assert_eq!(CudaContext::new(0).unwrap().compute_capability().unwrap(), (7, 5));
        assert_eq!(no_module(), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    });
    Device::new().compute_capability(90).run(|| drop(load("wrong")));
}

#[test]
fn no_cublas() {
    Device::new().without_cublas().run(|| {
        let module = load("wrong");
        assert!(module.try_out("right", shape(1, 256)).is_ok());
        assert!(!unsafe { cudarc::cublas::sys::is_culib_present() });
        assert!(!unsafe { cudarc::cublaslt::sys::is_culib_present() });
        assert!(catch_unwind(move || CudaBlas::new(module.stream.clone())).is_err());
    });
    Device::new().run(|| assert!(unsafe { cudarc::cublaslt::sys::is_culib_present() }));
}

#[test]
fn little_memory() {
    let report = Device::new().memory(10_000).run(|| {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let first = stream.alloc_zeros::<u8>(6_000).unwrap();
        assert_eq!(context.mem_get_info().unwrap(), (4_000, 10_000));
        let error = stream.alloc_zeros::<u8>(4_001).unwrap_err();
        assert_eq!(error.0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        // What is freed has room again for the next allocation of the stream, though nothing has run yet.
        drop(first);
        stream.alloc_zeros::<u8>(10_000).unwrap();
    });
    assert_eq!((report.peak, report.messages.len()), (10_000, 1));
    assert!(report.messages[0].contains("no room for 4001 bytes: 6000 of 10000 are in use"));
}

fn whole_program() -> Result<Vec<f32>, DriverError> {
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_file(kernels("wrong")))?;
    let pinned = unsafe { context.alloc_pinned::<f32>(512) }?;
    let from = stream.clone_htod(&vec![1f32; 512])?;
    let mut to: CudaSlice<f32> = stream.alloc_zeros(512)?;
    let kernel = module.load_function("right")?;
    let mut launch = stream.launch_builder(&kernel);
    use cudarc::driver::PushKernelArg;
    launch.arg(&mut to).arg(&from);
    unsafe { launch.launch(shape(1, 256)) }?;
    drop(pinned);
    stream.clone_dtoh(&to)
}

#[test]
fn every_allocation_fails_in_turn() {
    let all = Device::new().run(|| assert_eq!(whole_program().unwrap()[..256], [1.0; 256])).allocations;
    assert_eq!(all, 3);
    for n in 1..=all {
        let report = Device::new().fail_allocation(n).run(|| {
            assert_eq!(whole_program().unwrap_err().0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        });
        assert_eq!(report.messages, [format!("allocation {n} finds no room, as asked for")]);
    }
}

#[test]
fn every_call_fails_in_turn() {
    let report = Device::new().run(|| drop(whole_program().unwrap()));
    assert!(report.calls > 20 && report.entry_points["cuLaunchKernel"] == 1);
    let mut seen = 0;
    for n in 1..=report.calls {
        let report = Device::new().fail_call(n).run(|| {
            // Errors of calls that release something come out later, or never: a program ends well in spite of them.
            match whole_program() {
                Err(error) => assert_eq!(error.0, CUresult::CUDA_ERROR_UNKNOWN),
                Ok(found) => assert_eq!(found[..256], [1.0; 256]),
            }
        });
        assert!(report.messages[0].starts_with(&format!("call {n} (cu")), "{:?}", report.messages);
        seen += report.messages[0].contains("cuLaunchKernel") as u32;
    }
    assert_eq!(seen, 1);
}

#[test]
fn limits_of_launches() {
    let report = Device::new().run(|| {
        let module = load("wrong");
        let refused = |shape| module.try_out("right", shape).unwrap_err().0;
        let mut large = shape(1, 256);
        large.shared_mem_bytes = 60 << 10;
        let mut tall = shape(1, 256);
        tall.grid_dim.1 = 65536;
        for shape in [shape(1, 2048), shape(0, 32), large, tall] {
            assert_eq!(refused(shape), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        assert_eq!(module.missing("nowhere"), CUresult::CUDA_ERROR_NOT_FOUND);
        // None of these ends the context.
        module.try_out("right", shape(1, 256)).unwrap();
    });
    let words = [
        "blocks of [2048, 1, 1] threads",
        "a grid of [0, 1, 1]",
        "61440 bytes of dynamic",
        "[1, 65536, 1]",
        "no kernel `nowhere`",
    ];
    for (message, word) in report.messages.iter().zip(words) {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

/// After a fault nothing runs any more, as on a GPU.
#[test]
fn a_fault_ends_the_context() {
    Device::new().run(|| {
        let module = load("wrong");
        assert!(module.try_out("global_beyond", shape(1, 256)).is_err());
        let after = module.try_out("right", shape(1, 256)).unwrap_err();
        assert_eq!(after.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

/// The order of blocks shows where they write to one place, if races are not looked for.
#[test]
fn orders() {
    let first = |device: Device| {
        device.unwritten_allowed().without_races().run(|| {
            let found = load("wrong").try_out("blocks_number", shape(2, 64)).unwrap();
            let reversed = std::env::var_os("GPU_EMULATOR_REVERSED_BLOCKS").is_some();
            assert_eq!(found[0], if reversed { 0.0 } else { 1.0 });
            let reversed = std::env::var_os("GPU_EMULATOR_REVERSED_THREADS").is_some();
            assert_eq!(found[1], if reversed { 0.0 } else { 63.0 });
        });
    };
    first(Device::new());
    first(Device::new().reversed_blocks());
    first(Device::new().reversed_threads());
}

#[test]
fn the_report_of_this_process() {
    Device::new().run(|| {
        let before = Report::here().unwrap();
        load("wrong").try_out("right", shape(1, 256)).unwrap();
        let after = Report::here().unwrap();
        assert_eq!((before.launches, after.launches), (0, 1));
        assert!(after.instructions > 256 * 10 && after.used == 0 && after.peak == 4096);
    });
}

/// A program that knows nothing of the emulator runs on it too.
#[test]
fn a_program_of_its_own() {
    let run = |device: Device| {
        let mut command = device.command(std::env::current_exe().unwrap());
        command.args(["--exact", "knobs::probe", "--ignored", "--nocapture"]);
        let (output, report) = device.output(&mut command).unwrap();
        (String::from_utf8_lossy(&output.stdout).into_owned(), report.calls)
    };
    let (text, calls) = run(Device::new());
    assert!(text.contains("PROBE 1 devices") && calls > 0, "{text}");
    let (text, calls) = run(Device::new().without_driver());
    assert!(text.contains("PROBE no driver") && calls == 0, "{text}");
}

#[test]
#[ignore = "the program of the test above"]
fn probe() {
    match unsafe { is_culib_present() } {
        true => println!("PROBE {} devices", CudaContext::device_count().unwrap()),
        false => println!("PROBE no driver"),
    }
}
