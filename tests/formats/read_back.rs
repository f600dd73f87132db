//! What was written wrongly is found by reading it back.

use std::fs;
use std::path::Path;

use common::error::Result;
use common::format::atomic::PartDir;
use common::format::safetensors::TensorFile;
use common::stage::checkpoint::Checkpoint;
use common::stage::float::SupportFiles;
use common::stage::folded::Format;
use common::stage::folded::digest::Digests;
use common::stage::folded::verify::verify;
use common::stage::folded::write::{Target, Written, write};

use super::{train, wide};
use crate::tools::Dir;

/// Where the data of a tensor begin in the file.
pub fn offset(path: &Path, name: &str) -> usize {
    let file = TensorFile::open(path).unwrap();
    file.get(name).unwrap().bytes().as_ptr() as usize - file.map().as_ptr() as usize
}

/// What `fold` does with its output before it gets its name.
struct ReadBack {
    checkpoint: Checkpoint,
    support: SupportFiles,
    format: Format,
}

impl ReadBack {
    fn of(dir: &Dir, scheme: &str, format: Format) -> ReadBack {
        let checkpoint = Checkpoint::open(&dir.join(&format!("{scheme}/checkpoint"))).unwrap();
        let support = checkpoint.wrapped.support_files().unwrap();
        ReadBack { checkpoint, support, format }
    }

    fn of_folder(&self, folded: &Path) -> Result<()> {
        verify(folded, &self.target(), &Digests::new(), || {})
    }

    fn target(&self) -> Target<'_> {
        Target {
            from: &self.checkpoint.stage.dir,
            name: "model",
            source: &self.checkpoint,
            config_json: &self.checkpoint.wrapped.config_json,
            support: &self.support,
            scheme: self.checkpoint.wrapped.scheme,
            format: self.format,
            embedding: None,
            lora: None,
        }
    }
}

/// What stays floating point, the configuration and the tokenizer are read back as well.
#[test]
fn the_rest_of_the_model_written_wrongly_is_found() {
    let dir = wide();
    train(&dir, "w4g32");
    dir.run("fold w4g32/checkpoint -o folded").ok();
    let read_back = ReadBack::of(&dir, "w4g32", Format::CompressedTensors);
    let spoil = |name: &str, edit: &dyn Fn(&mut Vec<u8>), says: &str| {
        let path = dir.join("folded").join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        edit(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let e = read_back.of_folder(&dir.join("folded")).unwrap_err().to_string();
        assert!(e.contains(says), "{name}: {e}");
        fs::write(&path, whole).unwrap();
    };
    let norm = "model.layers.1.input_layernorm.weight";
    let at = offset(&dir.join("folded/model.safetensors"), norm);
    spoil("model.safetensors", &|b| b[at] ^= 1, &format!("{norm} reads back changed"));
    let edit = |from: &'static str, to: &'static str| {
        move |b: &mut Vec<u8>| {
            let text = String::from_utf8(std::mem::take(b)).unwrap();
            assert!(text.contains(from), "{from}");
            *b = text.replacen(from, to, 1).into_bytes();
        }
    };
    spoil("config.json", &edit("10000.0", "20000.0"), "configuration reads as another model's");
    spoil("config.json", &edit("\"group_size\": 32", "\"group_size\": 64"), "it reads as w4g64");
    spoil(
        "tokenizer.json",
        &edit("\"add_prefix_space\":false", "\"add_prefix_space\":true"),
        "tokenizer.json reads back",
    );
    // What readers advise is for somebody else's file; this one is gone when it is read.
    let nothing_kept = "report this; nothing was kept";
    spoil("tokenizer.json", &edit("{", "["), nothing_kept);
    spoil("config.json", &edit("{", "["), nothing_kept);
    spoil("model.safetensors", &|b| b.truncate(b.len() - 1), nothing_kept);
    read_back.of_folder(&dir.join("folded")).unwrap();
}

/// One byte of the codes, the scales, the zero points: the tensor and the element are named.
#[test]
fn what_was_written_wrongly_is_found() {
    let dir = wide();
    train(&dir, "w4g128z");
    train(&dir, "w8pc");
    let linear = "model.layers.1.self_attn.v_proj";
    for (scheme, format, spoilt) in [
        (
            "w4g128z",
            Format::CompressedTensors,
            [("weight_packed", "W_Z["), ("weight_scale", "scale["), ("weight_zero_point", "zero point[")],
        ),
        ("w4g128z", Format::GptqV2, [("qweight", "W_Z["), ("scales", "scale["), ("qzeros", "zero point[")]),
        ("w4g128z", Format::Awq, [("qweight", "W_Z["), ("scales", "scale["), ("qzeros", "zero point[")]),
        ("w8pc", Format::IntQuantized, [("weight", "W_Z["), ("weight_scale", "scale["), ("weight", "W_Z[")]),
    ] {
        let folded = format!("{scheme}-{format}");
        dir.run(&format!("fold {scheme}/checkpoint --format {format} -o {folded}")).ok();
        let read_back = ReadBack::of(&dir, scheme, format);
        read_back.of_folder(&dir.join(&folded)).unwrap();
        let path = dir.join(&folded).join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        for (suffix, what) in spoilt {
            let mut bytes = whole.clone();
            bytes[offset(&path, &format!("{linear}.{suffix}"))] ^= 1;
            fs::write(&path, bytes).unwrap();
            let e = read_back.of_folder(&dir.join(&folded)).unwrap_err().to_string();
            assert!(e.contains(&format!("{linear} {what}")) && e.contains("reads back as"), "{format} {suffix}: {e}");
            fs::write(&path, &whole).unwrap();
        }
    }
}

/// What `fold` does: it compares digests of the integers as they were made, and names the tensor and the element of those
/// that were packed, or lie in the file, otherwise.
#[test]
fn what_differs_from_what_was_packed_is_found() {
    let dir = wide();
    for (scheme, formats) in [
        ("w4g32", &[Format::CompressedTensors, Format::Gptq, Format::GptqV2, Format::Awq, Format::Gguf][..]),
        ("w8pc", &[Format::IntQuantized]),
    ] {
        train(&dir, scheme);
        for format in formats {
            let read_back = ReadBack::of(&dir, scheme, *format);
            let target = read_back.target();
            let part = PartDir::open(&dir.join(&format!("{scheme}-{format}"))).unwrap();
            let Written { files, mut digests } = write(&part, &target, |_| {}).unwrap();
            verify(part.path(), &target, &digests, || {}).unwrap();
            assert_eq!(digests.len(), target.linears().len());
            let linear = "model.layers.1.mlp.down_proj";
            let found = |digests: &Digests| verify(part.path(), &target, digests, || {}).unwrap_err().to_string();

            let weights = files.keys().find(|name| name.starts_with("model.")).unwrap();
            let path = part.join(weights);
            let whole = fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            let at = match format {
                Format::Gguf => bytes.len() - 1,
                Format::CompressedTensors => offset(&path, &format!("{linear}.weight_packed")),
                Format::IntQuantized => offset(&path, &format!("{linear}.weight")),
                _ => offset(&path, &format!("{linear}.qweight")),
            };
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let e = found(&digests);
            assert!(e.contains(&format!("{linear} W_Z[")) && e.contains("reads back as"), "{format}: {e}");
            fs::write(&path, whole).unwrap();

            // Integers that were others as they were packed.
            *digests.get_mut(linear).unwrap() ^= 1 << 100;
            let e = found(&digests);
            assert!(e.contains(&format!("{linear} was written from other integers")), "{format}: {e}");
        }
    }
}

/// The same in a GGUF, whose blocks mix scales and codes.
#[test]
fn a_gguf_written_wrongly_is_found() {
    let dir = wide();
    train(&dir, "w4g32");
    dir.run("fold w4g32/checkpoint --format gguf -o folded").ok();
    let read_back = ReadBack::of(&dir, "w4g32", Format::Gguf);
    read_back.of_folder(&dir.join("folded")).unwrap();
    let path = dir.join("folded/model.gguf");
    let whole = fs::read(&path).unwrap();
    // Linears lie behind the floats, in model order: the last bytes are codes of the last down_proj.
    for (back, what) in [(1, "W_Z["), (18, "scale[")] {
        let mut bytes = whole.clone();
        let at = bytes.len() - back;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let e = read_back.of_folder(&dir.join("folded")).unwrap_err().to_string();
        assert!(e.contains(&format!("model.layers.1.mlp.down_proj {what}")), "{e}");
    }
    // A token: "Ġthe".
    let mut bytes = whole;
    let at = bytes.windows(5).position(|w| w == "\u{120}the".as_bytes()).unwrap();
    bytes[at + 2] = b'x';
    fs::write(&path, bytes).unwrap();
    let e = read_back.of_folder(&dir.join("folded")).unwrap_err().to_string();
    assert!(e.contains("token") && e.contains("nothing was kept"), "{e}");
}
