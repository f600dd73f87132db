//! Weights rounded by GPTQ before training starts, input by input of block by block: each is what is given by all linears
//! before it, rounded already, and beside it goes what the float model gives there. Scales change with the integers.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::init::inputs_not_finite;
use super::scales::Scales;
use super::wrapped::pack_phi;
use super::wrapping::Place;
use crate::compute::cpu::Cpu;
use crate::compute::cpu::gptq::Order;
use crate::compute::cpu::linear::Workspace;
use crate::compute::cpu::product::{Lines, ToF32};
use crate::error::{Error, Result};
use crate::format::tensor::{Dtype, Tensor};
use crate::model::Config;
use crate::model::forward::Batch;
use crate::model::host::{Codes, HostLinear, Source, forward_grid, pack_rows};
use crate::model::inputs::{INPUT_OF, Stream, widths};
use crate::model::names::{self, LinearName};
use crate::model::weights::HostBlock;
use crate::quant::{LinearGrid, Phi, Scheme, pack};

/// Frozen weights as they will be stored, in a file that goes when this does.
pub struct Compensated {
    scheme: Scheme,
    path: PathBuf,
    file: File,
    linears: BTreeMap<String, Kept>,
    end: u64,
}

/// Of a linear.
struct Kept {
    /// Where its weights begin, and its scales behind them.
    at: u64,
    scales: u64,
}

impl Compensated {
    /// Rounds every linear, weighed by these sequences; `each` is told of each. The file lies in `dir`.
    pub fn new(
        scales: &Scales,
        place: Place,
        batches: &[Batch],
        dir: &Path,
        mut each: impl FnMut(),
    ) -> Result<Compensated> {
        if scales.model.scheme() == Some(scales.scheme) {
            return Err(Error::usage(
                format!("{}: its integers were there before: they are not rounded again", scales.stage.dir.display()),
                "leave --rounding gptq out",
            ));
        }
        let file = tempfile::tempfile_in(dir).map_err(Error::io(dir, "write"))?;
        let mut made = Compensated { scheme: scales.scheme, path: dir.into(), file, linears: BTreeMap::new(), end: 0 };
        let (backend, workspace) = (Cpu::<f32>::new(), Workspace::default());
        let mut float = Stream::new(&backend, &scales.model, batches)?;
        let mut stream = Stream::new(&backend, &scales.model, batches)?;
        let widths = widths(&scales.model);
        for layer in 0..scales.model.config().layers {
            let host = HostBlock::read(&scales.model, layer)?;
            let block = float.load(&host)?;
            let mut codes = BTreeMap::new();
            let of_layer = names::block_linears(scales.model.config(), layer);
            for (input, k) in widths.into_iter().enumerate() {
                let partly = stream.load(&HostBlock::read(&Rounded { scales, made: &made, codes: &codes }, layer)?)?;
                let (mut gram, mut drift, mut exact) = (vec![0.0; k * k], vec![0.0; k * k], Vec::new());
                for batch in 0..batches.len() {
                    float.show(&block, batch, input..input + 1, false, |_, x| exact = x.to_vec())?;
                    stream.show(&partly, batch, input..input + 1, false, |_, x| {
                        let rows = x.len() / k;
                        let (columns, lines) = (Lines::new(x, k, rows, (1, k)), Lines::columns(x, rows, k));
                        workspace.multiply_f32(&columns, &lines, ToF32::new(&mut gram, k, k, k, true));
                        for (exact, x) in exact.iter_mut().zip(x) {
                            *exact -= x;
                        }
                        let columns = Lines::new(&exact, k, rows, (1, k));
                        workspace.multiply_f32(&columns, &lines, ToF32::new(&mut drift, k, k, k, true));
                    })?;
                }
                let order = Order::new(&gram, drift, k);
                for (linear, _) in of_layer.iter().zip(INPUT_OF).filter(|(_, of)| *of == input) {
                    let Some(order) = &order else {
                        return Err(inputs_not_finite(scales, linear, "--rounding gptq"));
                    };
                    codes.insert(linear.name.clone(), made.round(scales, &workspace, linear, place, order)?);
                    each();
                }
            }
            float.pass(&block)?;
            stream.pass(&stream.load(&HostBlock::read(&Rounded { scales, made: &made, codes: &codes }, layer)?)?)?;
            host.forget();
        }
        Ok(made)
    }

    /// Rounds a linear and keeps it.
    fn round(
        &mut self,
        scales: &Scales,
        workspace: &Workspace,
        linear: &LinearName,
        place: Place,
        order: &Order,
    ) -> Result<Tensor> {
        let (n, k, scheme) = (linear.n, linear.k, self.scheme);
        let start = scales.start(linear)?;
        let mut z = vec![0.0; n * k];
        z.par_chunks_exact_mut(k).enumerate().for_each(|(row, z)| start.read(row, z));
        start.forget();
        let phi = match place {
            Place::Inside { phi } => phi,
            // What is stored is integers.
            Place::Outside { .. } => Phi::Int,
        };
        let scale = order.compensate(workspace, &mut z, &start.grid, scheme, phi);
        // It only copies: there is nothing to compile for an instruction set.
        let rows = |first: usize, out: &mut [f32]| out.copy_from_slice(&z[first * k..][..out.len()]);
        let codes = pack_rows(scheme, n, k, rows);
        let mut bytes = Vec::new();
        if let Place::Inside { phi } = place {
            bytes.resize(n * phi.row_bytes(scheme, k), 0);
            pack_phi(phi, scheme, k, &mut bytes, rows);
        }
        let kept = if bytes.is_empty() { codes.bytes() } else { &bytes };
        let at = self.append(kept)?;
        let scales = self.append(bytemuck::cast_slice(&scale))?;
        self.linears.insert(linear.name.clone(), Kept { at, scales });
        Ok(codes)
    }

    /// Where it begins.
    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let at = self.end;
        self.file.write_all_at(bytes, at).map_err(Error::io(&self.path, "write"))?;
        self.end += bytes.len() as u64;
        Ok(at)
    }

    /// The frozen weights of a linear.
    pub fn read(&self, linear: &str, out: &mut [u8]) -> Result<()> {
        self.read_at(self.linears[linear].at, out)
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, at).map_err(Error::io(&self.path, "read"))
    }

    /// The scales and zero points that a linear was rounded by.
    pub fn grid(&self, scales: &Scales, linear: &LinearName) -> Result<LinearGrid> {
        let mut grid = scales.grid(linear)?;
        self.read_at(self.linears[&linear.name].scales, bytemuck::cast_slice_mut(&mut grid.scale))?;
        Ok(grid)
    }

    /// The integers of a linear, where they are what is stored.
    pub fn codes(&self, scales: &Scales, linear: &LinearName) -> Result<Codes> {
        let words = pack::words(linear.k, self.scheme.bits);
        let mut bytes = vec![0; 4 * linear.n * words];
        self.read(&linear.name, &mut bytes)?;
        let codes = Tensor::owned(bytes, Dtype::I32, vec![linear.n, words]);
        Ok(Codes::forward(self.scheme, codes, forward_grid(self.grid(scales, linear)?)))
    }
}

/// The model with some linears of a block rounded.
struct Rounded<'a> {
    scales: &'a Scales,
    made: &'a Compensated,
    codes: &'a BTreeMap<String, Tensor>,
}

impl Source for Rounded<'_> {
    fn config(&self) -> &Config {
        self.scales.model.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.scales.model.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let Some(codes) = self.codes.get(&linear.name) else { return self.scales.model.linear(linear) };
        let grid = forward_grid(self.made.grid(self.scales, linear)?);
        Ok(HostLinear::Codes(Codes::forward(self.scales.scheme, codes.clone(), grid)))
    }
}
