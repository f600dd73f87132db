//! Weights rounded by GPTQ before training starts, input by input of block by block: each is what is given by all linears
//! before it, rounded already, and beside it goes what the float model gives there. Scales change with the integers. A block
//! can learn its rounding from there on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::bf16;
use rayon::prelude::*;

use super::init::inputs_not_finite;
use super::scales::Scales;
use super::wrapped::pack_phi;
use super::wrapping::{Place, RoundedBy, Wrapping};
use crate::compute::cpu::Cpu;
use crate::compute::cpu::element::Element;
use crate::compute::cpu::gptq::Order;
use crate::compute::cpu::linear::Workspace;
use crate::compute::cpu::product::{Lines, ToF32};
use crate::error::{Error, Result};
use crate::format::tensor::{Dtype, Tensor};
use crate::model::Config;
use crate::model::forward::Batch;
use crate::model::host::{Codes, HostLinear, Source, forward_grid, pack_rows};
use crate::model::inputs::{INPUT_OF, Stream, widths};
use crate::model::learned::{Learner, Streams};
use crate::model::names::{self, LinearName};
use crate::model::weights::HostBlock;
use crate::quant::{LinearGrid, Phi, Scheme, pack};

/// What was done of the work.
pub enum Did {
    /// A linear was rounded by GPTQ.
    Linear,
    /// A step of a block that learns.
    Step,
    /// A block was learned: what its output lacked before and after ([`crate::model::learned::Learned`]).
    Learned { layer: usize, errors: [f64; 2] },
}

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
    /// Rounds every linear, weighed by these sequences; `each` is told what was done. The file lies in `dir`.
    pub fn new(
        scales: &Scales,
        wrapping: &Wrapping,
        batches: &[Batch],
        dir: &Path,
        each: impl FnMut(Did),
    ) -> Result<Compensated> {
        match wrapping.rounding {
            RoundedBy::Learned { .. } => Compensated::made::<bf16>(scales, wrapping, batches, dir, each),
            _ => Compensated::made::<f32>(scales, wrapping, batches, dir, each),
        }
    }

    fn made<E: Element>(
        scales: &Scales,
        wrapping: &Wrapping,
        batches: &[Batch],
        dir: &Path,
        mut each: impl FnMut(Did),
    ) -> Result<Compensated> {
        if scales.model.scheme() == Some(scales.scheme) {
            return Err(Error::usage(
                format!("{}: its integers were there before: they are not rounded again", scales.stage.dir.display()),
                "leave --rounding gptq out",
            ));
        }
        let file = tempfile::tempfile_in(dir).map_err(Error::io(dir, "write"))?;
        let mut made = Compensated { scheme: scales.scheme, path: dir.into(), file, linears: BTreeMap::new(), end: 0 };
        let (backend, workspace) = (Cpu::<E>::new(), Workspace::default());
        let mut float = Stream::new(&backend, &scales.model, batches)?;
        let mut learner = match wrapping.rounding {
            RoundedBy::Learned { steps } => {
                Some(Learner::new(&backend, &scales.model, batches, scales.scheme, steps, wrapping.seed)?)
            }
            _ => None,
        };
        let mut stream = Stream::new(&backend, &scales.model, batches)?;
        let widths = widths(&scales.model);
        let weighed = weighed(batches);
        let phi = match wrapping.place {
            // What is stored is what was learned.
            _ if learner.is_some() => Phi::F32,
            Place::Inside { phi } => phi,
            // What is stored is integers.
            Place::Outside { .. } => Phi::Int,
        };
        for layer in 0..scales.model.config().layers {
            let host = HostBlock::read(&scales.model, layer)?;
            let block = float.load(&host)?;
            let mut in_block = BTreeMap::new();
            let of_layer = names::block_linears(scales.model.config(), layer);
            for (input, k) in widths.into_iter().enumerate() {
                let rounded = Rounded { scales, linears: &in_block, learning: false };
                let partly = stream.load(&HostBlock::read(&rounded, layer)?)?;
                let (mut gram, mut drift, mut exact) = (vec![0.0; k * k], vec![0.0; k * k], Vec::new());
                for batch in 0..weighed {
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
                        return Err(inputs_not_finite(scales, linear, "--rounding"));
                    };
                    let mut of = compensate(scales, &workspace, linear, phi, order)?;
                    if learner.is_none() {
                        made.keep(wrapping.place, linear, &of)?;
                        of.z = Vec::new();
                    }
                    in_block.insert(linear.name.clone(), of);
                    each(Did::Linear);
                }
            }
            float.pass(&block)?;
            if let Some(learner) = &mut learner {
                let rounded = HostBlock::read(&Rounded { scales, linears: &in_block, learning: true }, layer)?;
                let streams = Streams { inputs: stream.streams(), targets: float.streams() };
                let learned = learner.learn(&rounded, streams, || each(Did::Step))?;
                for (linear, [mut z, scale]) in of_layer.iter().zip(learned.linears) {
                    let codes = pack_z(scales.scheme, linear, &z);
                    Phi::settle(scales.scheme, &mut z);
                    let of = Linear { z, scale, codes };
                    made.keep(wrapping.place, linear, &of)?;
                    in_block.insert(linear.name.clone(), of);
                }
                each(Did::Learned { layer, errors: learned.errors });
            }
            let rounded = Rounded { scales, linears: &in_block, learning: false };
            stream.pass(&stream.load(&HostBlock::read(&rounded, layer)?)?)?;
            host.forget();
        }
        Ok(made)
    }

    /// Keeps a linear as it will be stored.
    fn keep(&mut self, place: Place, linear: &LinearName, of: &Linear) -> Result<()> {
        let (k, scheme) = (linear.k, self.scheme);
        let at = match place {
            Place::Outside { .. } => self.append(of.codes.bytes())?,
            Place::Inside { phi } => {
                let mut bytes = vec![0; linear.n * phi.row_bytes(scheme, k)];
                pack_phi(
                    phi,
                    scheme,
                    k,
                    &mut bytes,
                    #[inline(always)]
                    |row, z| z.copy_from_slice(&of.z[row * k..][..k]),
                );
                self.append(&bytes)?
            }
        };
        let scales = self.append(bytemuck::cast_slice(&of.scale))?;
        self.linears.insert(linear.name.clone(), Kept { at, scales });
        Ok(())
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

/// How many of the batches GPTQ takes its inputs from.
fn weighed(batches: &[Batch]) -> usize {
    let mut windows = 0;
    let before = |batch: &&Batch| {
        windows += batch.segments.len() as u64 - 1;
        windows <= RoundedBy::GPTQ_WINDOWS
    };
    batches.iter().take_while(before).count()
}

/// A linear of the block at work, rounded.
struct Linear {
    /// Z [n, k], which is rounded.
    z: Vec<f32>,
    /// Masters [n, G].
    scale: Vec<f32>,
    codes: Tensor,
}

/// A linear rounded by GPTQ.
fn compensate(scales: &Scales, workspace: &Workspace, linear: &LinearName, phi: Phi, order: &Order) -> Result<Linear> {
    let (n, k, scheme) = (linear.n, linear.k, scales.scheme);
    let start = scales.start(linear)?;
    let mut z = vec![0.0; n * k];
    z.par_chunks_exact_mut(k).enumerate().for_each(|(row, z)| start.read(row, z));
    start.forget();
    let scale = order.compensate(workspace, &mut z, &start.grid, scheme, phi);
    let codes = pack_z(scheme, linear, &z);
    Ok(Linear { z, scale, codes })
}

fn pack_z(scheme: Scheme, linear: &LinearName, z: &[f32]) -> Tensor {
    // It only copies: there is nothing to compile for an instruction set.
    pack_rows(scheme, linear.n, linear.k, |first, out| out.copy_from_slice(&z[first * linear.k..][..out.len()]))
}

/// The model with some linears of a block rounded.
struct Rounded<'a> {
    scales: &'a Scales,
    linears: &'a BTreeMap<String, Linear>,
    /// Z and the scales are to be learned.
    learning: bool,
}

impl Source for Rounded<'_> {
    fn config(&self) -> &Config {
        self.scales.model.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.scales.model.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let Some(of) = self.linears.get(&linear.name) else { return self.scales.model.linear(linear) };
        let masters = LinearGrid { scale: of.scale.clone(), zero: self.scales.grid(linear)?.zero };
        if !self.learning {
            let grid = forward_grid(masters);
            return Ok(HostLinear::Codes(Codes::forward(self.scales.scheme, of.codes.clone(), grid)));
        }
        let codes = Codes::forward(self.scales.scheme, of.codes.clone(), masters);
        Ok(HostLinear::Codes(Codes { master: true, latent: Some(of.z.clone()), ..codes }))
    }
}
