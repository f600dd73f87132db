//! Modules and their kernels. A module is parsed and decoded when it is loaded, so that what is not modelled is refused
//! there.

use std::collections::HashMap;
use std::ffi::c_char;
use std::sync::Arc;

use super::device::{most_shared, need_context};
use super::{In, Out, State, Status, entry_points};
use crate::decode;
use crate::exec::program::Program;
use crate::ptx::{Space, Variable, parser};

pub struct Module {
    pub source: Arc<str>,
    kernels: HashMap<String, Arc<Program>>,
    /// Address and bytes of the variables in global and constant memory.
    variables: HashMap<String, (u64, usize)>,
}

#[derive(Clone)]
pub struct Function {
    pub source: Arc<str>,
    pub program: Arc<Program>,
    /// Bytes of dynamic shared memory that a launch may have.
    pub most_dynamic: usize,
}

/// Without asking for more, a block has this much shared memory, static and dynamic.
const SHARED: usize = 48 << 10;

/// Ten times the version of PTX that a driver reads (release notes of the PTX ISA).
fn newest_ptx(driver: i32) -> u32 {
    let (major, minor) = (driver as u32 / 1000, driver as u32 % 1000 / 10);
    match (major, minor) {
        (13.., _) => 90 + minor,
        (12, 0..6) => 80 + minor,
        (12, _) => 79 + minor,
        _ => 70 + minor,
    }
}

/// The bytes of a variable; what is not given is zero.
fn initial_value(variable: &Variable) -> Option<Vec<u8>> {
    let mut bytes = vec![0; variable.bytes?];
    let size = variable.scalar.bytes();
    for (to, value) in bytes.chunks_exact_mut(size).zip(&variable.initial) {
        to.copy_from_slice(&value.to_le_bytes()[..size]);
    }
    Some(bytes)
}

impl State {
    fn load(&mut self, source: &str) -> Result<u64, Status> {
        need_context()?;
        let parsed = parser::parse(source);
        let module = parsed.map_err(|what| self.fail(Status::InvalidPtx, format!("PTX: {what}")))?;
        let newest = newest_ptx(self.knobs.driver);
        if module.version > newest {
            let what = format!("PTX {} is newer than the driver, which reads {newest} (tenths)", module.version);
            return Err(self.fail(Status::UnsupportedPtx, what));
        }
        let capability = self.knobs.compute_capability;
        if module.target as i32 > capability {
            let what = format!("PTX for sm_{} on a device of compute capability {capability}", module.target);
            return Err(self.fail(Status::NoBinary, what));
        }
        let mut variables = HashMap::new();
        for variable in module.variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const)) {
            let value = initial_value(variable).ok_or(Status::InvalidPtx)?;
            let address = self.memory.place_variable(&variable.name, &value);
            variables.insert(variable.name.clone(), (address, value.len()));
        }
        let addresses = variables.iter().map(|(name, (address, _))| (name.clone(), *address)).collect();
        let mut kernels = HashMap::new();
        for function in module.functions.iter().filter(|function| function.entry) {
            let decoded = decode::kernel(&module, function, &addresses);
            let program = decoded.map_err(|what| self.fail(Status::InvalidPtx, what))?;
            kernels.insert(function.name.clone(), Arc::new(program));
        }
        let handle = self.handle();
        self.modules.insert(handle, Module { source: source.into(), kernels, variables });
        Ok(handle)
    }

    fn function(&mut self, handle: u64) -> Result<&mut Function, Status> {
        self.functions.get_mut(&handle).ok_or(Status::InvalidHandle)
    }
}

entry_points! {
    fn cuModuleLoadData(to: Out<u64>, image: In<c_char>) |state| {
        let source = image.text().ok_or(Status::InvalidValue)?;
        to.set(state.load(&source)?)
    }
    fn cuModuleLoad(to: Out<u64>, path: In<c_char>) |state| {
        let path = path.text().ok_or(Status::InvalidValue)?;
        let source = std::fs::read_to_string(path).map_err(|_| Status::FileNotFound)?;
        to.set(state.load(&source)?)
    }
    fn cuModuleUnload(handle: u64) |state| {
        let done = state.run_all();
        let module = state.modules.remove(&handle).ok_or(Status::InvalidHandle)?;
        for (address, _) in module.variables.into_values() {
            state.memory.remove_variable(address);
        }
        done
    }
    fn cuModuleGetFunction(to: Out<u64>, module: u64, name: In<c_char>) |state| {
        let name = name.text().ok_or(Status::InvalidValue)?;
        let module = state.modules.get(&module).ok_or(Status::InvalidHandle)?;
        let Some(program) = module.kernels.get(&name).cloned() else {
            return Err(state.fail(Status::NotFound, format!("the module has no kernel `{name}`")));
        };
        let function = Function { source: module.source.clone(), most_dynamic: SHARED - program.shared_bytes.min(SHARED), program };
        let handle = state.handle();
        state.functions.insert(handle, function);
        to.set(handle)
    }
    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: u64, name: In<c_char>) |state| {
        let name = name.text().ok_or(Status::InvalidValue)?;
        let module = state.modules.get(&module).ok_or(Status::InvalidHandle)?;
        let (start, len) = module.variables.get(&name).copied().ok_or(Status::NotFound)?;
        address.set(start)?;
        bytes.set(len)
    }
    fn cuFuncGetAttribute(value: Out<i32>, which: u32, function: u64) |state| {
        let function = state.function(function)?;
        value.set(match which {
            0 => function.program.max_threads as i32,
            1 => function.program.shared_bytes as i32,
            3 => function.program.local_bytes as i32,
            8 => function.most_dynamic as i32,
            _ => 0,
        })
    }
    fn cuFuncSetAttribute(function: u64, which: u32, value: i32) |state| {
        let most = most_shared(state.knobs.compute_capability);
        let function = state.function(function)?;
        if which == 8 {
            if value < 0 || value as usize + function.program.shared_bytes > most {
                return Err(Status::InvalidValue);
            }
            function.most_dynamic = value as usize;
        }
        Ok(())
    }
    fn cuFuncSetCacheConfig(function: u64, _config: u32) |state| { state.function(function).map(drop) }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>,
        function: u64,
        threads: i32,
        _dynamic: usize,
    ) |state| {
        state.function(function)?;
        blocks.set(2048 / threads.max(1))
    }
}
