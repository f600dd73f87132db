//! Spaces of memory, calls, and order between blocks.

use cudarc::driver::{LaunchConfig, PushKernelArg};
use gpu_emulator::Device;

use crate::device::{load, shape};
use crate::numbers::floats;

const THREADS: usize = 64;
const STRIDE: usize = 16;

/// As C lays it out.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    rows: i32,
    stride: i64,
    flags: [u16; 3],
}

// SAFETY: plain numbers, of the same layout as in the kernel.
unsafe impl cudarc::driver::DeviceRepr for Shape {}

#[test]
fn spaces() {
    Device::new().run(|| {
        let memory = load("torture_memory");
        let values = floats(4 * THREADS, 10, 3.0);
        let bytes: Vec<i8> = (0..THREADS).map(|t| (t as i8 - 30) * 2).collect();
        let (from, small) = (memory.stream.clone_htod(&values).unwrap(), memory.stream.clone_htod(&bytes).unwrap());
        let mut to = memory.stream.alloc_zeros::<f32>(THREADS * STRIDE).unwrap();
        let (given, n) = (Shape { rows: 40, stride: STRIDE as i64, flags: [1, 500, 3] }, 2i32);
        let kernel = memory.kernel("spaces");
        let mut launch = memory.stream.launch_builder(&kernel);
        launch.arg(&mut to).arg(&from).arg(&small).arg(&given).arg(&n);
        let config = LaunchConfig { shared_mem_bytes: 4 * THREADS as u32, ..shape(1, THREADS as u32) };
        unsafe { launch.launch(config) }.unwrap();
        let found = memory.stream.clone_dtoh(&to).unwrap();

        let four = |t: usize| -> [f32; 4] { std::array::from_fn(|i| values[4 * t + i]) };
        let dynamic = |t: usize| four(t)[0] + bytes[t] as f32;
        let table = [1.0f32, 10.0, 100.0, 1000.0, 10000.0];
        let polynomial = |x: f32, c: &[f32]| c.iter().fold(0f32, |r, c| r.mul_add(x, *c));
        for t in 0..THREADS {
            let own: Vec<f32> = (0..8).map(|i| ((i + 8 - t % 8) % 8) as f32).collect();
            let [x, y, z, w] = four(t);
            let back = THREADS - 1 - t;
            let row = &found[t * STRIDE..(t + 1) * STRIDE];
            let wanted = [
                dynamic(back),
                (500 + back) as f32,
                own[t & 7],
                table[t % 5],
                polynomial(y, &own[..4]),
                polynomial(z, &table),
                42.0,
                if t & 1 == 1 { dynamic(t) } else { w },
            ];
            assert_eq!(row[..8], wanted, "thread {t}");
            let double = f64::from_bits(row[8].to_bits() as u64 | (row[9].to_bits() as u64) << 32);
            assert_eq!(double, w as f64 * 3.0);
            assert_eq!(row[11], if t == 0 { 6.0 } else { 0.0 });
            assert_eq!(row[12..], [w, z, y, x]);
        }
    });
}

#[test]
fn instructions_beside_the_caches() {
    Device::new().run(|| {
        let memory = load("torture_memory");
        let values = floats(128, 11, 1.0);
        let from = memory.stream.clone_htod(&values).unwrap();
        let mut to = unsafe { memory.stream.alloc::<f32>(128) }.unwrap();
        let kernel = memory.kernel("cached");
        let mut launch = memory.stream.launch_builder(&kernel);
        launch.arg(&mut to).arg(&from);
        unsafe { launch.launch(shape(1, 32)) }.unwrap();
        let wanted: Vec<f32> = values.chunks_exact(4).flat_map(|four| four.iter().rev().copied()).collect();
        assert_eq!(memory.stream.clone_dtoh(&to).unwrap(), wanted);
    });
}

/// A fence and an atomic order the blocks: no race.
#[test]
fn the_last_block_sums() {
    for device in [Device::new(), Device::new().reversed_blocks(), Device::new().reversed_threads()] {
        device.run(|| {
            let memory = load("torture_memory");
            let stream = &memory.stream;
            let values: Vec<f32> = (0..32 * 9).map(|i| (i % 7) as f32).collect();
            let from = stream.clone_htod(&values).unwrap();
            let mut to = unsafe { stream.alloc::<f32>(1) }.unwrap();
            let mut partial = unsafe { stream.alloc::<f32>(9) }.unwrap();
            let mut arrived = stream.alloc_zeros::<u32>(1).unwrap();
            let kernel = memory.kernel("last_block");
            let mut launch = stream.launch_builder(&kernel);
            launch.arg(&mut to).arg(&mut partial).arg(&mut arrived).arg(&from);
            unsafe { launch.launch(shape(9, 32)) }.unwrap();
            assert_eq!(stream.clone_dtoh(&to).unwrap(), [values.iter().sum::<f32>()]);
        });
    }
}

/// Variables of a module can be found by name, and hold what they were given.
#[test]
fn variables_of_a_module() {
    Device::new().run(|| {
        let memory = load("torture_memory");
        let table = memory.global("TABLE");
        let wanted: Vec<u8> = [1f32, 10.0, 100.0, 1000.0, 10000.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(memory.stream.clone_dtoh(&table).unwrap(), wanted);
    });
}
