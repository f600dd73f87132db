//! Launches. Limits and parameters are checked when they are submitted, as the driver does.

use std::ffi::c_void;

use super::device::need_context;
use super::module::Function;
use super::queue::Work;
use super::{Bits, In, State, Status, entry_points};
use crate::exec::{Kind, Launch};

pub struct KernelLaunch {
    function: Function,
    parameters: Vec<u8>,
    blocks: [u32; 3],
    threads: [u32; 3],
    dynamic_shared: usize,
}

impl KernelLaunch {
    pub fn name(&self) -> &str {
        &self.function.program.name
    }
}

impl State {
    fn launch(
        &mut self,
        function: u64,
        blocks: [u32; 3],
        threads: [u32; 3],
        dynamic_shared: u32,
        stream: u64,
        arguments: Bits,
    ) -> Result<(), Status> {
        need_context()?;
        self.healthy()?;
        let function = self.functions.get(&function).ok_or(Status::InvalidHandle)?.clone();
        let name = &function.program.name;
        let count = threads.iter().map(|n| *n as u64).product::<u64>();
        let most = function.program.max_threads;
        let what = if blocks.contains(&0) || blocks[0] > i32::MAX as u32 || blocks[1].max(blocks[2]) > 65535 {
            Some(format!("a grid of {blocks:?}"))
        } else if count == 0 || count > most as u64 || threads[2] > 64 {
            Some(format!("blocks of {threads:?} threads, where {most} is the most"))
        } else if dynamic_shared as usize > function.most_dynamic {
            Some(format!(
                "{dynamic_shared} bytes of dynamic shared memory, where {} is the most",
                function.most_dynamic
            ))
        } else {
            None
        };
        if let Some(what) = what {
            return Err(self.fail(Status::InvalidValue, format!("launch of {name}: {what}")));
        }
        let mut parameters = Vec::new();
        for (index, (variable, offset)) in function.program.parameters.iter().enumerate() {
            let Some(bytes) = arguments.argument(index, variable.bytes.unwrap_or_default()) else {
                return Err(self.fail(Status::InvalidValue, format!("launch of {name}: parameter {index} is null")));
            };
            parameters.resize(*offset, 0);
            parameters.extend(bytes);
        }
        self.launches += 1;
        let dynamic_shared = dynamic_shared as usize;
        let launch = KernelLaunch { function, parameters, blocks, threads, dynamic_shared };
        self.submit(stream, Work::Kernel(Box::new(launch)))
    }

    pub fn run_kernel(&mut self, kernel: &KernelLaunch, pending: &str) -> Result<(), Status> {
        let launch = Launch {
            program: &kernel.function.program,
            source: &kernel.function.source,
            memory: &self.memory,
            parameters: &kernel.parameters,
            blocks: kernel.blocks,
            threads: kernel.threads,
            dynamic_shared: kernel.dynamic_shared,
            checks: self.knobs.checks(),
        };
        let start = std::time::Instant::now();
        let done = launch.run(&mut self.history);
        match done {
            Ok(executed) => {
                self.instructions += executed;
                let took = start.elapsed().as_secs_f64();
                self.log(|| {
                    let millions = executed as f64 / took / 1e6;
                    format!("{}: {executed} thread instructions in {took:.4} s, {millions:.0} M/s", kernel.name())
                });
                Ok(())
            }
            Err(fault) => {
                let status = match fault.kind {
                    Kind::IllegalAddress => Status::IllegalAddress,
                    Kind::Misaligned => Status::MisalignedAddress,
                    Kind::Trap => Status::IllegalInstruction,
                    Kind::Wrong => Status::LaunchFailed,
                };
                let hint = if fault.what.contains("unwritten") { pending } else { "" };
                Err(self.fail(status, format!("{fault}{hint}")))
            }
        }
    }
}

entry_points! {
    fn cuLaunchKernel(
        function: u64,
        blocks_x: u32,
        blocks_y: u32,
        blocks_z: u32,
        threads_x: u32,
        threads_y: u32,
        threads_z: u32,
        dynamic_shared: u32,
        stream: u64,
        arguments: Bits,
        _extra: In<*const c_void>,
    ) |state| {
        let (blocks, threads) = ([blocks_x, blocks_y, blocks_z], [threads_x, threads_y, threads_z]);
        state.launch(function, blocks, threads, dynamic_shared, stream, arguments)
    }
}
