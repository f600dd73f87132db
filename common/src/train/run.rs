//! The training loop: from a step of the schedule to another, saving on the way.

use std::time::Instant;

use super::metrics::{MetricsFile, StepMetrics};
use super::optimizer;
use super::recipe::Recipe;
use super::resume::Saves;
use crate::compute::answers::Answers;
use crate::compute::backend::{Backend, Loss, Moments, Teaching};
use crate::compute::dropout;
use crate::data::order::Windows;
use crate::error::{Error, Result};
use crate::format::atomic::PartDir;
use crate::model::backward::Terms;
use crate::model::forward::Batch;
use crate::model::ledger::{Activations, Keeping, Pass};
use crate::model::teacher::Teacher;
use crate::model::weights::Model;
use crate::stage::answers::Answered;
use crate::stage::shards::Shards;

/// Where the divergence is measured from.
pub enum Taught<'a, B: Backend> {
    Not,
    By(Box<Teacher<B>>),
    /// By what a teacher said of the shards before.
    ByAnswers(&'a Answered),
}

/// A run: what it trains, on what, how far.
pub struct Run<'a, B: Backend> {
    pub backend: &'a B,
    pub recipe: &'a Recipe,
    pub shards: &'a Shards,
    pub taught: Taught<'a, B>,
    pub part: &'a PartDir,
    pub saves: &'a Saves<'a>,
    /// Steps between saves; 0 saves only when stopped.
    pub save_every: u64,
    /// Part of an adapter's inputs that is dropped.
    pub dropout: f32,
    /// Changes no byte of the result.
    pub keeping: Keeping,
    /// The step to stop at.
    pub until: u64,
    /// Asked after every step: a reason to stop now, if there is one.
    pub stop: &'a dyn Fn() -> Option<String>,
    /// Told of every step.
    pub each: &'a mut dyn FnMut(&StepMetrics),
    /// Peak bytes of the device's memory, for the log.
    pub peak_memory: &'a dyn Fn() -> u64,
}

/// What a step reads: windows, by shard and where in it; and its micro-batches.
#[derive(Default)]
struct Tokens {
    places: Vec<(usize, usize)>,
    batches: Vec<Batch>,
}

impl<B: Backend> Run<'_, B> {
    /// Trains from step `from` (steps done) to `until`.
    pub fn train(
        &mut self,
        model: &mut Model<B>,
        moments: &mut Moments<B>,
        from: u64,
        metrics: &mut MetricsFile,
    ) -> Result<()> {
        let trained = self.steps(model, moments, from, metrics);
        // However it ended: a save that could not be written failed before, and nobody may be told that it is there.
        self.saves.wait().and(trained)
    }

    fn steps(
        &mut self,
        model: &mut Model<B>,
        moments: &mut Moments<B>,
        from: u64,
        metrics: &mut MetricsFile,
    ) -> Result<()> {
        let rows = self.recipe.batch * self.recipe.seq;
        let lengths = Activations::lengths(&model.config, rows, true).keeping(&model.config, self.keeping);
        let mut acts = lengths.allocate(self.backend)?;
        let mut grads = model.params.zeros_like(self.backend)?;
        // A teacher that runs along reads the windows that it would have answered before: the two can be compared.
        let answered = |a: &Answered| self.recipe.objective.taught() && a.seq == self.recipe.seq;
        let windows = self.shards.windows(self.recipe.seq, self.shards.answers.as_ref().is_some_and(answered))?;
        let vocab = model.config.vocab;
        let mut read = self.read(from, &windows, vocab);
        for t in from..self.until {
            let begun = Instant::now();
            let terms = self.gradients(model, t, &read?, &mut acts, &mut grads)?;
            // The tokens of the next step, while a GPU is still at the gradients of this one.
            read = if t + 1 < self.until { self.read(t + 1, &windows, vocab) } else { Ok(Tokens::default()) };
            let (ce, kl) = self.recipe.objective.weights(self.recipe.seq);
            let loss = ce * terms.ce + kl * terms.kl;
            let norm = self.check_finite(model, t, loss, &grads)?;
            optimizer::step(self.backend, self.recipe, t, norm, &mut model.params, &grads, moments);
            acts.integers.made = false;
            let factor = self.recipe.rate_factor(t);
            let m = StepMetrics {
                step: t + 1,
                loss,
                kl: self.recipe.objective.taught().then_some(terms.kl),
                ce: self.recipe.objective.taught().then_some(terms.ce),
                grad_norm: norm,
                lr_ab: self.recipe.lr_ab * factor,
                lr_scale: self.recipe.lr_scale * factor,
                tokens_per_s: self.recipe.tokens_per_step() as f64 / begun.elapsed().as_secs_f64(),
                peak_rss: (self.peak_memory)(),
            };
            metrics.append(&m)?;
            (self.each)(&m);
            self.saves.check()?;
            let done = t + 1;
            let stop = if done < self.until { (self.stop)() } else { None };
            let save = stop.is_some() || (self.save_every > 0 && done.is_multiple_of(self.save_every));
            if save || done == self.until {
                self.check_trained(model, done)?;
            }
            if save {
                self.saves.save(self.backend, done, &model.params, moments)?;
            }
            if let Some(why) = stop {
                return Err(Error::Stopped { path: self.part.path().to_path_buf(), step: done, why });
            }
        }
        Ok(())
    }

    fn read(&self, t: u64, windows: &Windows, vocab: usize) -> Result<Tokens> {
        let r = self.recipe;
        let places: Vec<(usize, usize)> = (0..r.batch * r.accum).map(|i| windows.sample(r.seed, t, i as u64)).collect();
        let read = |places: &[(usize, usize)]| {
            let samples = places.iter().map(|(shard, at)| self.shards.read(*shard, *at, r.seq, vocab));
            let samples = samples.collect::<Result<Vec<_>>>()?;
            Ok(Batch::next_token(samples.iter().map(|s| s.as_slice())))
        };
        let batches = places.chunks(r.batch).map(read).collect::<Result<_>>()?;
        Ok(Tokens { places, batches })
    }

    /// Gradients of a step over all its micro-batches; returns the means of both terms over tokens.
    fn gradients(
        &mut self,
        model: &mut Model<B>,
        t: u64,
        tokens: &Tokens,
        acts: &mut Pass<B>,
        grads: &mut [B::Buffer],
    ) -> Result<Terms> {
        let (b, r) = (self.backend, self.recipe);
        for g in grads.iter_mut() {
            b.fill_zero(g);
        }
        if let Taught::By(teacher) = &mut self.taught {
            teacher.read(b, &tokens.batches)?;
        }
        let predictions = r.batch * r.accum * (r.seq - 1);
        let scale = 1.0 / predictions as f32;
        let (ce, kl) = r.objective.weights(r.seq);
        let (ce, kl) = (ce as f32, kl as f32);
        let mut sum = Terms::default();
        for (i, (batch, places)) in tokens.batches.iter().zip(tokens.places.chunks(r.batch)).enumerate() {
            model.dropout = Some(dropout::Pass { p: self.dropout, seed: r.seed, step: t, micro_batch: i as u64 });
            let terms = match &mut self.taught {
                Taught::Not => {
                    let loss = Loss { ce, kl: 0.0, teacher: None };
                    model.loss_and_gradients(b, batch, &loss, scale, acts, grads)?
                }
                Taught::By(teacher) => {
                    teacher.finish(b, i, batch.rows());
                    let weight = teacher.weight();
                    let loss = Loss { ce, kl, teacher: Some(Teaching::Live(teacher.head(&weight))) };
                    model.loss_and_gradients(b, batch, &loss, scale, acts, grads)?
                }
                Taught::ByAnswers(all) => {
                    let rows = places.iter().flat_map(|(shard, at)| all.window(*shard, *at)).collect();
                    let answers = Answers { layout: all.layout, rows };
                    let loss = Loss { ce, kl, teacher: Some(Teaching::Stored(answers)) };
                    model.loss_and_gradients(b, batch, &loss, scale, acts, grads)?
                }
            };
            sum = Terms { ce: sum.ce + terms.ce, kl: sum.kl + terms.kl };
        }
        if let Taught::ByAnswers(all) = &self.taught {
            all.forget();
        }
        Ok(Terms { ce: sum.ce / predictions as f64, kl: sum.kl / predictions as f64 })
    }

    fn check_finite(&self, model: &Model<B>, t: u64, loss: f64, grads: &[B::Buffer]) -> Result<f64> {
        let norm = optimizer::gradient_norm(self.backend, &model.params, grads)?;
        match norm {
            Ok(norm) if loss.is_finite() => Ok(norm),
            Ok(_) => Err(self.not_finite("loss".to_string(), t + 1)?),
            // A gradient names its tensor, which the loss does not.
            Err(name) => Err(self.not_finite(format!("gradient of {name}"), t + 1)?),
        }
    }

    /// A rate that is far too high makes weights infinite before any gradient is: such a save would be no good one.
    fn check_trained(&self, model: &Model<B>, step: u64) -> Result<()> {
        match optimizer::gradient_norm(self.backend, &model.params, &model.params.values)? {
            Ok(_) => Ok(()),
            Err(name) => Err(self.not_finite(name, step)?),
        }
    }

    fn not_finite(&self, tensor: String, step: u64) -> Result<Error> {
        let kept = match self.saves.latest()? {
            Some((dir, _)) => format!("the last good save is {}; lower --lr-ab or --lr-scale", dir.display()),
            None => "nothing was saved yet; lower --lr-ab or --lr-scale".to_string(),
        };
        Ok(Error::NotFinite { tensor, step, kept })
    }
}
