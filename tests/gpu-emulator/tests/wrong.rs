//! Wrong kernels are reported, each by what is wrong with it; the right ones beside them pass without a word.

use cudarc::driver::LaunchConfig;
use cudarc::driver::sys::CUresult;
use gpu_emulator::{Device, Report};

use crate::device::{load, shape};

fn outcome(kernel: &str, shape: LaunchConfig) -> Result<Vec<f32>, CUresult> {
    load("wrong").try_out(kernel, shape).map_err(|error| error.0)
}

/// Runs a kernel that has to fail with this status and a message that has all the words.
fn wrong_on(device: &Device, kernel: &str, shape: LaunchConfig, status: CUresult, words: &[&str]) {
    let report = device.run(|| assert_eq!(outcome(kernel, shape).err(), Some(status), "{kernel}"));
    let [message] = &report.messages[..] else { panic!("{kernel}: {:?}, expected one message", report.messages) };
    let place = format!("kernel {kernel}, block [");
    for word in words.iter().copied().chain([place.as_str()]) {
        assert!(message.contains(word), "{kernel}: {message:?} does not say {word:?}");
    }
}

fn wrong(kernel: &str, blocks: u32, words: &[&str]) {
    wrong_on(&Device::new(), kernel, shape(blocks, 256), CUresult::CUDA_ERROR_LAUNCH_FAILED, words);
}

/// Passes in every order, with what it should compute.
fn right(kernel: &str, blocks: u32, wanted: impl Fn(usize) -> f32) {
    let orders = [Device::new(), Device::new().reversed_threads(), Device::new().reversed_blocks().without_races()];
    for device in orders {
        let report = device.run(|| {
            let found = outcome(kernel, shape(blocks, 256)).unwrap();
            let wanted: Vec<f32> = (0..256).map(&wanted).collect();
            assert_eq!(found[..256], wanted, "{kernel}");
        });
        assert_eq!(report, Report { messages: vec![], ..report.clone() }, "{kernel}");
    }
}

#[test]
fn barriers_that_are_missing() {
    right("right", 1, |t| (255 - t) as f32);
    right("right_reuse", 1, |t| 2.0 * ((t + 40) % 256) as f32 + 1.0);
    let race = "race in shared memory: ";
    // The first warp that runs reads what others have not written.
    wrong("no_barrier", 1, &["reads unwritten memory", "of shared `", "which nothing has written"]);
    let allowed = Device::new().unwritten_allowed();
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
    let words = [race, "which thread [", "] read (line ", "and no barrier is between", "thread ["];
    wrong_on(&allowed, "no_barrier", shape(1, 256), failed, &words);
    wrong(
        "no_barrier_before_reuse",
        1,
        &[race, "writes byte", "read (line", "no barrier is between", "`st.shared.f32"],
    );
}

#[test]
fn barriers_that_not_all_reach() {
    let divergent = "divergent synchronization: ";
    wrong(
        "divergent_barrier",
        1,
        &[divergent, "100 threads (from thread 0 on) wait at line", "`bar.sync 0;`", "156 threads have"],
    );
    wrong("exit_before_barrier", 1, &[divergent, "201 threads", "55 threads have exited"]);
}

#[test]
fn warps() {
    right("right_syncwarp", 1, |t| (t ^ 1) as f32);
    right("right_syncwarp_of_halves", 1, |t| (t ^ 1) as f32);
    wrong(
        "shuffle_after_exit",
        1,
        &["divergent", "wait for lane 16 of their warp, which has exited, at line", "`shfl.sync.bfly"],
    );
    wrong("shuffle_outside_mask", 1, &["`shfl.sync.idx", "reads from lane 20, which is not in the mask 0x0000ffff"]);
    wrong(
        "shuffle_apart",
        1,
        &["divergent", "17 threads (from thread 0 on) wait for lane 17 of their warp, which is elsewhere, at line"],
    );
    let race = "race in shared memory: ";
    wrong(
        "syncwarp_for_barrier",
        1,
        &[race, "thread [32, 0, 0]", "which thread [0, 0, 0] wrote", "no barrier is between"],
    );
    for kernel in ["no_syncwarp", "syncwarp_of_others"] {
        wrong(
            kernel,
            1,
            &[race, "which thread [1, 0, 0] wrote", "no __syncwarp is between", "thread [0, 0, 0]", "`ld.shared.f32"],
        );
    }
}

#[test]
fn addresses() {
    let out = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    let device = Device::new();
    let cases: [(&str, &[&str]); 6] = [
        (
            "shared_beyond",
            &["thread [255, 0, 0]", "writes out of the bounds of shared memory", "offset 1024 of `", "of 1024 bytes"],
        ),
        (
            "shared_into_neighbour",
            &["thread [255, 0, 0]", "reads out of the bounds of shared memory", "offset 1024 of `"],
        ),
        ("dynamic_beyond", &["thread [0, 0, 0]", "writes out of the bounds of shared memory"]),
        (
            "global_beyond",
            &[
                "thread [255, 0, 0]",
                "`ld.global",
                "reads out of the bounds",
                "offset 2048 of allocation",
                "of 2048 bytes",
            ],
        ),
        ("local_beyond", &["thread [192, 0, 0]", "out of the bounds of local memory", "of 16"]),
        ("null_pointer", &["thread [0, 0, 0]", "writes out of the bounds of global memory", "no allocation is near"]),
    ];
    for (kernel, words) in cases {
        wrong_on(&device, kernel, shape(1, 256), out, words);
    }
    let words = ["misaligned: reads 16 bytes at 0x", "thread [0, 0, 0]", "ld.global", ".v4.f32"];
    wrong_on(&device, "misaligned", shape(1, 256), CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, &words);
    let some = LaunchConfig { shared_mem_bytes: 1024, ..shape(1, 256) };
    Device::new().run(|| assert_eq!(outcome("dynamic_beyond", some).unwrap()[..4], [1.0, 0.0, 3.0, 2.0]));
    let less = LaunchConfig { shared_mem_bytes: 1020, ..shape(1, 256) };
    wrong_on(&device, "dynamic_beyond", less, out, &["thread [255, 0, 0]", "offset 1020 of `d` of 1020 bytes"]);
}

#[test]
fn unwritten_memory() {
    wrong("shared_unwritten", 1, &["thread [17, 0, 0]", "reads unwritten memory: byte 68 of shared `"]);
    // Without the check it is NaN.
    Device::new().unwritten_allowed().run(|| {
        let found = outcome("shared_unwritten", shape(1, 256)).unwrap();
        assert!((0..256).all(|t| found[t].is_nan() == (t == 17)));
    });
    Device::new().unwritten_allowed().poison(0).run(|| {
        let found = outcome("shared_unwritten", shape(1, 256)).unwrap();
        assert_eq!((found[16], found[17]), (16.0, 0.0));
    });
}

#[test]
fn blocks() {
    let race = "race in global memory: ";
    right("right_blocks_add", 4, |t| if t == 0 { 6.0 } else { 0.0 });
    right(
        "right_halves",
        1,
        |t| if t < 128 { f32::from_bits((2 * t as u32) | ((2 * t as u32 + 1) << 16)) } else { 0.0 },
    );
    wrong(
        "blocks_add",
        2,
        &[race, "block [1, 0, 0], thread [0, 0, 0]", "which another block wrote (line", "nothing orders the blocks"],
    );
    wrong(
        "block_reads_other",
        2,
        &[race, "block [1, 0, 0]", "reads byte 0 (0x", "of 2048 bytes, which another block wrote"],
    );
    wrong("block_overwrites", 5, &[race, "block [3, 0, 0]", "writes byte 4 ", "which another block read"]);
    wrong(
        "threads_share_word",
        1,
        &[race, "thread [1, 0, 0]", "which thread [0, 0, 0] wrote", "no __syncwarp is between"],
    );
    wrong(
        "last_block_without_fence",
        4,
        &[race, "block [3, 0, 0]", "which another block wrote", "nothing orders the blocks"],
    );
    // In another order, another block is the one that is reported.
    let reversed = Device::new().reversed_blocks();
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
    wrong_on(&reversed, "block_reads_other", shape(2, 256), failed, &["block [1, 0, 0]", "unwritten"].map(|_| race));
}

#[test]
fn copies_in_the_background() {
    right("right_copy", 1, |t| (t ^ 33) as f32);
    wrong("copy_not_waited_for", 1, &["reads unwritten memory", "of shared `"]);
    wrong("copy_without_barrier", 1, &["reads unwritten memory", "of shared `"]);
}

#[test]
fn instructions() {
    wrong("divides_by_zero", 1, &["thread [77, 0, 0]", "`div.s32", "an integer is divided by zero"]);
    let trap = CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION;
    wrong_on(&Device::new(), "traps", shape(1, 256), trap, &["thread [40, 0, 0]", "`trap;`: trap"]);
    let (short, failed) = (Device::new().budget(10_000), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    wrong_on(&short, "waits_for_a_block", shape(2, 1), failed, &["block [0, 0, 0]", "budget of instructions"]);
}
