//! `qat-step`: trains A, B and s along a schedule, with checkpoints that resume to the bit.

mod arguments;
mod job;

use std::process::ExitCode;
use std::time::Instant;

use arguments::{Args, Memory};
use common::cli::device::Chosen;
use common::cli::signals::Signals;
use common::cli::{self, memory, progress};
use common::compute::backend::{Backend, Moments};
use common::compute::cpu::Cpu;
use common::compute::cuda::Cuda;
use common::data::tokenizer::Tokenizer;
use common::error::{Error, Result};
use common::format::atomic::{PartDir, write_file};
use common::model::ledger::Keeping;
use common::model::weights::Model;
use common::stage::checkpoint::{LOSS_CURVE, METRICS, OPTIMIZER, TRAINED};
use common::stage::record::{self, Begin, Record, Stage};
use common::train::metrics::{self, MetricsFile, StepMetrics};
use common::train::plan::Holding;
use common::train::resume::{self, Saves};
use common::train::run::Run;
use common::train::{curve, plan};
use half::bf16;
use job::Resolved;

fn main() -> ExitCode {
    cli::main("qat-step", run)
}

fn run() -> Result<()> {
    let begun = Instant::now();
    let args: Args = cli::parse()?;
    args.common.start()?;
    match args.device.choose()? {
        Chosen::CpuF32 => run_on(|| Ok(Cpu::<f32>::new()), &args, begun),
        Chosen::CpuBf16 => run_on(|| Ok(Cpu::<bf16>::new()), &args, begun),
        Chosen::Cuda => run_on(Cuda::open, &args, begun),
    }
}

fn run_on<B: Backend>(open: impl FnOnce() -> Result<B>, args: &Args, begun: Instant) -> Result<()> {
    let job = Resolved::new(args)?;
    let mut holding = job.holding()?;
    if args.plan {
        // A GPU that nobody has opened says nothing: the least that a run holds.
        let room = if B::TABLES_ON_HOST { None } else { half_of_available() };
        plan::keep_within::<B>(&mut holding, to_fill(args.memory, room));
        let planned = plan::plan::<B>(&holding);
        let on_host = plan::on_host::<B>(&planned);
        let show = if args.common.json { plan::json } else { plan::table };
        return cli::print(&show(&planned, on_host.as_ref()));
    }
    let backend = &open()?;
    let tokenizer = Tokenizer::from_files(job.wrapped.dir(), &job.wrapped.support_files()?)?;
    job.shards()?.check_tokenizer(job.wrapped.dir(), tokenizer.digest())?;
    job.shards()?.windows(job.recipe.seq, false)?;
    let record = job.record(args)?;
    match record::begin(args.output(), &record, args.common.force)? {
        Begin::Done => {}
        Begin::Write(part) => {
            let planned = fits(backend, &mut holding, args.memory)?;
            train(args, &job, backend, &part, record, begun, (planned, holding.keeping))?;
            finish(part)?;
            let whose = if backend.peak_memory().is_some() { "of the GPU" } else { "resident" };
            cli::say(&args.common, "qat-step", format!("peak {whose} {}", plan::mib(peak_memory(backend))));
        }
    }
    cli::print_path(&args.common, args.output())
}

/// Keeps what there is room for; the planned bytes. Refuses what the device cannot hold, before the system ends the process
/// in the middle of it.
fn fits<B: Backend>(backend: &B, holding: &mut Holding, memory: Option<Memory>) -> Result<u64> {
    let of_device = backend.room()?;
    let least = plan::total(&plan::plan::<B>(holding));
    let refuse = |whose: &str, room: u64| {
        let what = format!("the run would hold {}, expected at most {whose} {}", plan::mib(least), plan::mib(room));
        Err(Error::usage(what, "lower --batch (and raise --accum) or --seq; --plan shows what takes how much"))
    };
    let whose = if of_device.is_some() { "the GPU's free" } else { "this machine's" };
    let room = of_device.or_else(memory::installed).unwrap_or(u64::MAX);
    match memory {
        _ if least > room => return refuse(whose, room),
        Some(Memory::Most(most)) if least > most => return refuse("--memory", most),
        _ => {}
    }
    // A twentieth of the GPU is left to whoever draws on its screen.
    let default = of_device.map(|free| free / 20 * 19).or_else(half_of_available);
    plan::keep_within::<B>(holding, to_fill(memory, default).min(room));
    Ok(plan::total(&plan::plan::<B>(holding)))
}

/// The bytes that what is kept may fill.
fn to_fill(memory: Option<Memory>, default: Option<u64>) -> u64 {
    match memory {
        Some(Memory::Least) => 0,
        Some(Memory::Most(bytes)) => bytes,
        None => default.unwrap_or(0),
    }
}

/// Of the host's memory: others want some of it.
fn half_of_available() -> Option<u64> {
    Some(memory::available()? / 2)
}

/// The most bytes that were held where the plan counts them.
fn peak_memory<B: Backend>(backend: &B) -> u64 {
    backend.peak_memory().unwrap_or_else(memory::peak_resident)
}

/// Trains from the last save, or from the start, and writes the finished files beside the saves.
fn train<B: Backend>(
    args: &Args,
    job: &Resolved,
    backend: &B,
    part: &PartDir,
    record: Record,
    begun: Instant,
    (planned, keeping): (u64, Keeping),
) -> Result<()> {
    if part.join(record::FILE).is_file() {
        match Stage::read(part.path()) {
            // Killed between writing the finished files and the rename: only the rename is left.
            Ok(stage) if stage.record.same_making(&record).is_ok() => return Ok(()),
            _ if args.common.force => part.clear()?,
            _ => return Err(resume::other_run(part.path())),
        }
    }
    let saves = Saves::new(part, job.making(&record));
    let latest = match saves.latest() {
        Err(_) if args.common.force => {
            part.clear()?;
            None
        }
        other => other?,
    };
    let begun_on = latest.as_ref().map(|(_, state)| state.compute_path.as_str()).or(job.begun_on());
    if let Some(path) = begun_on.filter(|path| *path != backend.path()) {
        let message = format!("saved on {path}, going on on {}: not the same bytes", backend.path());
        cli::say(&args.common, "qat-step", message);
    }
    let mut model = job.load(backend)?;
    let (mut moments, from) = match &latest {
        Some((dir, state)) => {
            resume::load_trained(backend, &dir.join(TRAINED), &mut model.params)?;
            cli::say(&args.common, "qat-step", format!("resumed at step {}", state.step));
            let path = dir.join(OPTIMIZER);
            (resume::load_moments(backend, job.recipe.moments, &path, &model.params)?, state.step)
        }
        None => job.start(backend, &model)?,
    };
    memory::give_back();
    let mut log = MetricsFile::resume(&part.join(METRICS), from, job.earlier_log().as_deref())?;
    cli::say(&args.common, "qat-step", format!("planned peak {}", plan::mib(planned)));
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
        taught: job.taught(backend)?,
        part,
        saves: &saves,
        save_every: args.save_every,
        until: job.until,
        dropout: job.wrapped.wrapping.dropout(),
        keeping,
        stop: &stop,
        each: &mut each,
        peak_memory: &|| peak_memory(backend),
    };
    let trained = run.train(&mut model, &mut moments, from, &mut log);
    bar.finish_and_clear();
    trained?;
    write_finished(part, job, backend, &model, &moments, record)
}

/// All files of the checkpoint, `stage.json` last.
fn write_finished<B: Backend>(
    part: &PartDir,
    job: &Resolved,
    backend: &B,
    model: &Model<B>,
    moments: &Moments<B>,
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
    record::write(part, &record)?;
    part.keep();
    Ok(())
}

/// Removes the saves, and what else a killed run left, and makes the directory appear.
fn finish(part: PartDir) -> Result<()> {
    let record = Stage::read(part.path())?.record;
    let logs = [METRICS, LOSS_CURVE, record::FILE];
    part.remove(|name| !logs.contains(&name) && !record.files.contains_key(name))?;
    part.commit()
}
