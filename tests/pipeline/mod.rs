/// All stages through pipes; typed again, with other arguments, with --force, --plan, -q, --json.
mod chain;
/// Runs of qat-step that end early, by a signal, a time limit, or a kill at any moment.
mod resume;
/// What is said of a checkpoint is said of the folded integers, for every kind of scheme; any number of threads.
mod same;
/// Text that models write.
mod generate;
/// Adapters beside fixed integers: trained, kept, refused.
mod adapter;
/// Weights rounded by GPTQ before training.
mod rounding;
/// Learning from a model that runs along, and from its answers in a file.
mod teacher;
