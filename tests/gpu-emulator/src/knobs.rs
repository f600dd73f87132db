//! What can be set, by environment variables that are read when the library is loaded. [`crate::Device`] sets them for a
//! test or a program.

use std::str::FromStr;

use crate::exec::Checks;

macro_rules! knobs {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $default:expr, $variable:literal;)*) => {
        #[derive(Debug, Clone)]
        pub struct Knobs {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl Knobs {
            /// As the environment says; a value that is no number is refused loudly.
            pub fn from_environment() -> Self {
                Knobs { $($field: read($variable, $default),)* }
            }
        }

        /// The names of the variables, by field.
        pub mod variable {
            $(#[allow(non_upper_case_globals)] pub const $field: &str = $variable;)*
        }
    };
}

knobs! {
    /// Bytes of device memory.
    memory: usize = 8 << 30, "GPU_EMULATOR_MEMORY";
    /// 0: the driver is there, a GPU is not.
    devices: i32 = 1, "GPU_EMULATOR_DEVICES";
    /// As cuDriverGetVersion gives it: 12000 is 12.0, which reads PTX up to 8.0.
    driver: i32 = 12000, "GPU_EMULATOR_DRIVER";
    /// 80 is 8.0: PTX for more is refused.
    compute_capability: i32 = 80, "GPU_EMULATOR_COMPUTE_CAPABILITY";
    /// 1: look for races in shared and global memory; blocks then run one after the other.
    races: u8 = 1, "GPU_EMULATOR_RACES";
    /// 1: reading bytes that nothing has written is an error.
    unwritten: u8 = 1, "GPU_EMULATOR_UNWRITTEN";
    /// What memory holds before it is written: 255 makes every float NaN.
    poison: u8 = 255, "GPU_EMULATOR_POISON";
    /// 1: the last block runs first.
    reversed_blocks: u8 = 0, "GPU_EMULATOR_REVERSED_BLOCKS";
    /// 1: the last warp runs first, and the last lane comes first where lanes have an order.
    reversed_threads: u8 = 0, "GPU_EMULATOR_REVERSED_THREADS";
    /// 1: work runs when it is submitted; 0: when something waits for it, the newest stream first.
    eager: u8 = 0, "GPU_EMULATOR_EAGER";
    /// The most instructions of a warp between two barriers.
    budget: u64 = 1 << 32, "GPU_EMULATOR_BUDGET";
    /// The allocation (of device or pinned memory, from 1) that finds no room.
    fail_allocation: u64 = 0, "GPU_EMULATOR_FAIL_ALLOCATION";
    /// The call (of any function, from 1) that fails.
    fail_call: u64 = 0, "GPU_EMULATOR_FAIL_CALL";
    /// 1: say on stderr what runs.
    log: u8 = 0, "GPU_EMULATOR_LOG";
    /// The file that gets the [`crate::Report`] when the process ends.
    report: String = String::new(), "GPU_EMULATOR_REPORT";
}

fn read<T: FromStr>(variable: &str, default: T) -> T {
    match std::env::var(variable) {
        Err(_) => default,
        Ok(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => {
                eprintln!("gpu-emulator: {variable}={text:?} is no value for it");
                std::process::abort()
            }
        },
    }
}

impl Knobs {
    pub fn checks(&self) -> Checks {
        Checks {
            races: self.races != 0,
            unwritten: self.unwritten != 0,
            reversed_blocks: self.reversed_blocks != 0,
            reversed_threads: self.reversed_threads != 0,
            poison: self.poison,
            budget: self.budget,
        }
    }
}
