//! `qat-step`: trains A, B and s along a schedule, with checkpoints that resume to the bit.

mod arguments;

use std::process::ExitCode;
use std::time::Instant;

use arguments::{Args, Resolved};
use clap::Parser;
use common::cli::signals::Signals;
use common::cli::{self, memory, progress};
use common::compute::backend::Backend;
use common::compute::cpu::Cpu;
use common::data::tokenizer::Tokenizer;
use common::error::Result;
use common::format::atomic::{PartDir, write_file};
use common::model::weights::Model;
use common::stage::checkpoint::{LOSS_CURVE, METRICS, OPTIMIZER, TRAINED};
use common::stage::record::{self, Begin, Record};
use common::train::metrics::{self, MetricsFile, StepMetrics};
use common::train::optimizer::Moments;
use common::train::resume::{self, Saves};
use common::train::run::Run;
use common::train::{curve, plan};

fn main() -> ExitCode {
    cli::main("qat-step", run)
}

fn run() -> Result<()> {
    let begun = Instant::now();
    let args = Args::parse();
    args.common.start()?;
    let backend = args.device.open()?;
    let job = Resolved::new(&args)?;
    let planned = plan::plan(&backend, &job.holding()?);
    if args.plan {
        return cli::print(&plan::table(&planned));
    }
    let tokenizer = Tokenizer::from_files(job.wrapped.dir(), &job.wrapped.support_files()?)?;
    job.shards()?.check_tokenizer(job.wrapped.dir(), tokenizer.digest())?;
    job.shards()?.windows(job.recipe.seq)?;
    let record = job.record(&args)?;
    match record::begin(args.output(), &record, args.common.force, true)? {
        Begin::Done(_) => {}
        Begin::Write(part) => {
            if args.common.force && args.output().exists() {
                part.clear()?;
            }
            cli::say(&args.common, "qat-step", format!("planned peak {}", plan::mib(plan::total(&planned))));
            train(&args, &job, &backend, &part, record.clone(), begun)?;
            finish(part)?;
            cli::say(&args.common, "qat-step", format!("peak resident {}", plan::mib(memory::peak_resident())));
        }
    }
    cli::print_path(&args.common, args.output())
}

/// Trains from the last save, or from the start, and writes the finished files beside the saves.
fn train(args: &Args, job: &Resolved, backend: &Cpu, part: &PartDir, record: Record, begun: Instant) -> Result<()> {
    if part.join(record::FILE).is_file() {
        // Killed between writing the finished files and the rename: only the rename is left.
        return Ok(());
    }
    let saves = Saves::new(part, job.making(&record));
    let latest = match saves.latest() {
        Err(_) if args.common.force => {
            part.clear()?;
            None
        }
        other => other?,
    };
    let mut model = Model::load(backend, job.source(), job.recipe.seq)?;
    let (mut moments, from) = match &latest {
        Some((dir, state)) => {
            if state.compute_path != backend.path() {
                let path = &state.compute_path;
                cli::say(
                    &args.common,
                    "qat-step",
                    format!("saved on {path}, going on on {}: not the same bytes", backend.path()),
                );
            }
            resume::load_trained(backend, &dir.join(TRAINED), &mut model.params)?;
            eprintln!("resumed at step {}", state.step);
            (resume::load_moments(backend, &dir.join(OPTIMIZER), &model.params)?, state.step)
        }
        None => job.start(backend, &model)?,
    };
    let (mut log, kept) = MetricsFile::resume(&part.join(METRICS), from)?;
    drop(kept);
    let signals = Signals::listen()?;
    let stop = || args.stop_reason(begun, &signals);
    let bar = progress::count(&args.common, "qat-step", job.until);
    bar.set_position(from);
    bar.reset_eta();
    let mut each = |m: &StepMetrics| {
        bar.set_position(m.step);
        let memory = plan::mib(m.peak_rss);
        bar.set_message(format!("loss {:.4} {:.0} tokens/s peak {memory}", m.loss, m.tokens_per_s));
    };
    let mut run = Run {
        backend,
        recipe: &job.recipe,
        shards: job.shards()?,
        part,
        saves: &saves,
        save_every: args.save_every.unwrap_or(0),
        until: job.until,
        stop: &stop,
        each: &mut each,
        peak_memory: memory::peak_resident,
    };
    let trained = run.train(&mut model, &mut moments, from, &mut log);
    bar.finish_and_clear();
    trained?;
    write_finished(part, job, backend, &model, &moments, record)
}

/// All files of the checkpoint, `stage.json` last.
fn write_finished(
    part: &PartDir,
    job: &Resolved,
    backend: &Cpu,
    model: &Model<Cpu>,
    moments: &Moments<Cpu>,
    mut record: Record,
) -> Result<()> {
    record.files.insert(TRAINED.into(), resume::write_trained(backend, &part.join(TRAINED), &model.params)?);
    if job.until < job.recipe.steps {
        let digest = resume::write_moments(backend, &part.join(OPTIMIZER), &model.params, moments)?;
        record.files.insert(OPTIMIZER.into(), digest);
    }
    let steps = metrics::read(&part.join(METRICS))?;
    if let Some(svg) = curve::loss_curve(&steps) {
        write_file(&part.join(LOSS_CURVE), svg.as_bytes())?;
    }
    record.details.insert("step".into(), job.until.into());
    record.details.insert("steps".into(), job.recipe.steps.into());
    record.details.insert("compute_path".into(), backend.path().into());
    record::write(part, &record)
}

/// Removes the saves and makes the directory appear.
fn finish(part: PartDir) -> Result<()> {
    Saves::new(&part, String::new()).remove()?;
    part.commit()
}
