//! What a command line means together with what its input remembers.

use std::path::{Path, PathBuf};

use common::cli;
use common::compute::backend::{Backend, Moments};
use common::error::{Error, Result};
use common::model::host::{FixedScales, Source};
use common::model::ledger::Keeping;
use common::model::teacher::Teacher;
use common::model::weights::Model;
use common::stage::checkpoint::{Checkpoint, METRICS, OPTIMIZER};
use common::stage::open::Artefact;
use common::stage::record::{Input, Kind, Record, Stage, relative_path};
use common::stage::shards::Shards;
use common::stage::wrapped::Wrapped;
use common::train::Recipe;
use common::train::plan::{FloatBytes, HeldTeacher, Holding};
use common::train::recipe::Objective;
use common::train::resume;
use common::train::run::Taught;

use crate::arguments::Args;

/// The job that the command line and its input describe together.
pub struct Resolved {
    pub wrapped: Wrapped,
    /// The checkpoint that is gone on from.
    checkpoint: Option<Checkpoint>,
    shards: Option<Shards>,
    /// The model that is learnt from, if one runs along.
    teacher: Option<TeacherModel>,
    pub recipe: Recipe,
    /// The step to stop at.
    pub until: u64,
}

struct TeacherModel {
    path: PathBuf,
    model: Artefact,
    digest: String,
}

impl Resolved {
    pub fn new(args: &Args) -> Result<Resolved> {
        let input = cli::input_path(&args.input)?;
        let stage = Stage::open(&input, &[Kind::Wrapped, Kind::Checkpoint])?;
        let checkpoint = match stage.record.kind {
            Kind::Checkpoint => Some(Checkpoint::open(&input)?),
            _ => None,
        };
        let wrapped = match &checkpoint {
            Some(c) => Wrapped::of(c.stage.open_input("wrapped", Kind::Wrapped)?)?,
            None => Wrapped::of(stage)?,
        };
        let recipe = resolve_recipe(args, checkpoint.as_ref())?;
        recipe.check()?;
        let shards = open_shards(args, checkpoint.as_ref())?;
        let teacher = open_teacher(args, checkpoint.as_ref(), &recipe)?;
        if let Some(t) = &teacher {
            check_vocab(&t.path, t.model.config().vocab, &wrapped)?;
        }
        if args.common.verify {
            let stages =
                [checkpoint.as_ref().map(|c| &c.stage), Some(&wrapped.stage), shards.as_ref().map(|s| &s.stage)];
            stages.into_iter().flatten().try_for_each(Stage::verify)?;
            teacher.iter().try_for_each(|t| t.model.verify())?;
        }
        let from = checkpoint.as_ref().filter(|c| !c.finished()).map_or(0, |c| c.step);
        let until = args.stop_at.unwrap_or(recipe.steps);
        if until <= from || until > recipe.steps {
            return Err(Error::usage(
                format!("--stop-at {until} lies outside of steps {} to {}", from + 1, recipe.steps),
                "give a step that is still to come",
            ));
        }
        if wrapped.wrapping.rank == 0 && recipe.lr_scale == 0.0 {
            return Err(Error::usage(
                format!("{}: neither adapters nor, with --lr-scale 0, scales are trained", wrapped.dir().display()),
                "give --lr-scale 1e-5, or wrap with a rank",
            ));
        }
        let job = Resolved { wrapped, checkpoint, shards, teacher, recipe, until };
        if job.recipe.objective.taught() && job.teacher.is_none() && job.shards.is_some() {
            job.check_answers()?;
        }
        Ok(job)
    }

    pub fn shards(&self) -> Result<&Shards> {
        self.shards.as_ref().ok_or_else(|| Error::usage("no --shards", "give the directory that shard made"))
    }

    /// That the shards can take a teacher's place.
    fn check_answers(&self) -> Result<()> {
        let shards = self.shards()?;
        let Some(answers) = &shards.answers else {
            return Err(Error::usage(
                format!("{}: shards without a teacher's answers, and no --teacher", shards.stage.dir.display()),
                "give --teacher MODEL, or make the shards with shard --teacher MODEL --top-k K",
            ));
        };
        shards.check_answers()?;
        check_vocab(&shards.stage.dir, answers.layout.vocab, &self.wrapped)?;
        if answers.seq != self.recipe.seq {
            return Err(Error::usage(
                format!(
                    "{}: answers to windows of {} tokens, expected --seq {}",
                    shards.stage.dir.display(),
                    answers.seq,
                    self.recipe.seq
                ),
                format!("give --seq {}, or --teacher MODEL", answers.seq),
            ));
        }
        Ok(())
    }

    /// Where the divergence is measured from.
    pub fn taught<B: Backend>(&self, backend: &B) -> Result<Taught<'_, B>> {
        let r = &self.recipe;
        Ok(match (&self.teacher, &self.shards()?.answers) {
            _ if !r.objective.taught() => Taught::Not,
            (Some(t), _) => Taught::By(Box::new(Teacher::load(backend, &t.model, r.seq, r.batch * r.seq, r.accum)?)),
            (None, Some(answers)) => Taught::ByAnswers(answers),
            (None, None) => unreachable!("checked when the job was resolved"),
        })
    }

    fn held_teacher(&self) -> Result<Option<HeldTeacher>> {
        let answers = self.shards.as_ref().and_then(|s| s.answers.as_ref());
        Ok(match (&self.teacher, answers) {
            _ if !self.recipe.objective.taught() => None,
            (Some(t), _) => Some(HeldTeacher::of(&t.model)?),
            (None, Some(a)) => Some(HeldTeacher::Answers(a.layout)),
            // A plan without shards does not know.
            (None, None) => None,
        })
    }

    /// Loads the values training starts from.
    pub fn load<B: Backend>(&self, backend: &B) -> Result<Model<B>> {
        let source: &dyn Source = match &self.checkpoint {
            Some(c) => c,
            None => &self.wrapped,
        };
        match self.recipe.lr_scale == 0.0 {
            true => Model::load(backend, &FixedScales(source), self.recipe.seq),
            false => Model::load(backend, source, self.recipe.seq),
        }
    }

    /// Moments and step at the start of this job: those of an unfinished checkpoint, or fresh ones.
    pub fn start<B: Backend>(&self, backend: &B, model: &Model<B>) -> Result<(Moments<B>, u64)> {
        match &self.checkpoint {
            Some(c) if !c.finished() => {
                let path = c.stage.dir.join(OPTIMIZER);
                let moments = resume::load_moments(backend, self.recipe.moments, &path, &model.params)?;
                Ok((moments, c.step))
            }
            _ => Ok((Moments::zeros(backend, self.recipe.moments, &model.params)?, 0)),
        }
    }

    /// The log of the unfinished checkpoint that is gone on from.
    pub fn earlier_log(&self) -> Option<PathBuf> {
        self.checkpoint.as_ref().filter(|c| !c.finished()).map(|c| c.stage.dir.join(METRICS))
    }

    /// The compute path of the unfinished checkpoint that is gone on from.
    pub fn begun_on(&self) -> Option<&str> {
        self.checkpoint.as_ref().filter(|c| !c.finished())?.stage.record.details.get("compute_path")?.as_str()
    }

    pub fn record(&self, args: &Args) -> Result<Record> {
        let out = args.output();
        let mut inputs =
            vec![self.wrapped.stage.as_input("wrapped", out)?, self.shards()?.stage.as_input("shards", out)?];
        if let Some(c) = &self.checkpoint {
            inputs.push(c.stage.as_input("checkpoint", out)?);
        }
        if let Some(t) = &self.teacher {
            inputs.push(Input { role: TEACHER.into(), path: relative_path(&t.path, out)?, digest: t.digest.clone() });
        }
        let mut arguments = serde_json::to_value(&self.recipe).expect("a recipe is plain JSON");
        arguments["stop_at"] = self.until.into();
        let record = Record::new(Kind::Checkpoint, Some(self.wrapped.scheme.to_string()), arguments, inputs);
        // Older versions would go on from another loss with cross entropy.
        Ok(if self.recipe.objective == Objective::default() { record.in_format(1) } else { record })
    }

    /// Digest of what the run is: recipe and inputs, but not where this job of it stops.
    pub fn making(&self, record: &Record) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(serde_json::to_string(&self.recipe).expect("a recipe is plain JSON").as_bytes());
        for input in &record.inputs {
            hash.update(input.digest.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }

    pub fn holding(&self) -> Result<Holding<'_>> {
        Ok(Holding {
            config: &self.wrapped.config,
            scheme: self.wrapped.scheme,
            wrapping: &self.wrapped.wrapping,
            floats: FloatBytes::of(&self.wrapped)?,
            recipe: &self.recipe,
            keeping: Keeping::default(),
            taught: self.held_teacher()?,
        })
    }
}

/// An unfinished checkpoint fixes the recipe; a different value typed is an error.
fn resolve_recipe(args: &Args, checkpoint: Option<&Checkpoint>) -> Result<Recipe> {
    let Some(c) = checkpoint.filter(|c| !c.finished()) else { return args.recipe(&Recipe::default()) };
    let own = Recipe::from_arguments(&c.stage.dir, &c.stage.record.arguments)?;
    if let Some((begun, typed)) = own.difference(&args.recipe(&own)?) {
        return Err(Error::usage(
            format!("{}: at step {} of a schedule with {typed}, expected {begun}", c.stage.dir.display(), c.step),
            "leave the recipe's flags out to go on, or start from the wrapped model",
        ));
    }
    Ok(own)
}

fn open_shards(args: &Args, checkpoint: Option<&Checkpoint>) -> Result<Option<Shards>> {
    let path = match (&args.shards, checkpoint) {
        (Some(path), _) => path.clone(),
        (None, Some(c)) => c.stage.input_path("shards")?.0,
        (None, None) => return Ok(None),
    };
    let shards = Shards::open(&path)?;
    if let Some(c) = checkpoint.filter(|c| !c.finished())
        && c.stage.input("shards")?.digest != shards.stage.digest
    {
        return Err(Error::usage(
            format!("{}: its schedule is not at its end, and was begun with other shards", c.stage.dir.display()),
            "leave --shards out to go on, or start from the wrapped model",
        ));
    }
    Ok(Some(shards))
}

/// The role of the model that is learnt from.
const TEACHER: &str = "teacher";

/// An unfinished checkpoint fixes the teacher as it does the shards.
fn open_teacher(args: &Args, checkpoint: Option<&Checkpoint>, recipe: &Recipe) -> Result<Option<TeacherModel>> {
    let begun = checkpoint.filter(|c| !c.finished());
    let begun_with = begun.and_then(|c| c.stage.input(TEACHER).ok());
    let path = match (&args.teacher, begun_with, begun) {
        (Some(_), ..) if !recipe.objective.taught() => {
            return Err(Error::usage("--teacher, but a loss that does not use it", "give --loss kl, or leave it out"));
        }
        (Some(path), ..) => path.clone(),
        (None, Some(_), Some(c)) => c.stage.input_path(TEACHER)?.0,
        _ => return Ok(None),
    };
    let model = Artefact::open(&path)?;
    let digest = model.digest()?;
    if let Some(c) = begun
        && begun_with.is_none_or(|begun_with| begun_with.digest != digest)
    {
        return Err(Error::usage(
            format!("{}: its schedule is not at its end, and was begun with another teacher", c.stage.dir.display()),
            "leave --teacher out to go on, or start from the wrapped model",
        ));
    }
    Ok(Some(TeacherModel { path, model, digest }))
}

fn check_vocab(path: &Path, vocab: usize, wrapped: &Wrapped) -> Result<()> {
    if vocab == wrapped.config.vocab {
        return Ok(());
    }
    Err(Error::input(
        path,
        format!("a vocabulary of {vocab}"),
        format!("{} of {}", wrapped.config.vocab, wrapped.dir().display()),
        "learn from the model that it was made from",
    ))
}
