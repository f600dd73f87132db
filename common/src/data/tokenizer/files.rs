//! Which files of a Hugging Face directory belong to its tokenizer.

use std::path::{Path, PathBuf};

/// Everything that a tool which loads the tokenizer, or generates with it, may look for.
const NAMES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// Those of them that are there, in a fixed order.
pub fn hf_files(dir: &Path) -> Vec<PathBuf> {
    NAMES.iter().map(|name| dir.join(name)).filter(|path| path.is_file()).collect()
}
