use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/text/");
/// What `make.py` beside the fixtures writes, nulls left out.
const ROWS: [&str; 6] = ["First.", "", "Zweites: äöü 十二 ☃", "line one\nline two", "First.", "the last"];

fn fixture(name: &str) -> PathBuf {
    Path::new(DATA).join(name)
}

fn all(rows: Result<Documents>) -> Result<Vec<String>> {
    rows?.collect()
}

fn refused(path: &Path) -> String {
    let message = all(documents(path)).expect_err("refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    message.replace(&path.display().to_string(), "FILE")
}

fn file(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn arrow_and_zstd_files_of_others_are_read() {
    let full: Vec<&str> = ROWS.into_iter().filter(|row| !row.is_empty()).collect();
    for name in ["snappy.parquet", "zstd.parquet", "gzip.parquet", "frames.jsonl.zst"] {
        assert_eq!(all(rows(&fixture(name))).unwrap(), ROWS, "{name}");
        assert_eq!(all(documents(&fixture(name))).unwrap(), full, "{name}");
        assert_eq!(joined(&fixture(name)).unwrap(), ROWS.join("\n\n"), "{name}");
    }
    let required: Vec<String> = (0..200).map(|i| format!("row {i}")).collect();
    assert_eq!(all(documents(&fixture("required.parquet"))).unwrap(), required);
    assert_eq!(all(documents(&fixture("long.jsonl.zst"))).unwrap(), ["by the tool", "second"]);
}

#[test]
fn a_txt_is_one_document_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let text = " \n = Title = \r\n\nbody\n";
    let path = file(&dir, "a.TXT", text);
    assert_eq!(all(documents(&path)).unwrap(), [text]);
    assert_eq!(joined(&path).unwrap(), text);
    let path = file(&dir, "b.txt", b"caf\xc3\xa9 \xe9");
    assert_eq!(
        refused(&path),
        "FILE: bytes at offset 6 that are not UTF-8, expected UTF-8 text; convert it with iconv"
    );
}

#[test]
fn json_lines_round_trip_and_bad_lines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let texts = ["a\tb", "\u{1F600} \\ \"", "c"];
    let lines: Vec<String> = texts.iter().map(|t| serde_json::json!({"id": 7, "text": t}).to_string()).collect();
    let plain = lines.join("\n\n  \r\n");
    assert_eq!(all(documents(&file(&dir, "a.jsonl", &plain))).unwrap(), texts);
    let packed = zstd::encode_all(plain.as_bytes(), 3).unwrap();
    assert_eq!(all(documents(&file(&dir, "a.jsonl.zst", packed))).unwrap(), texts);

    let cure = "expected an object with a string \"text\"; correct or drop the line";
    let cases = [
        ("{\"text\": \"a\"}\n\nnot json\n", "line 3: not an object"),
        ("{\"text\": \"a\"}\n{\"body\": 1}\n", "line 2, column 11: missing field `text`"),
        ("{\"text\": null}\n", "line 1, column 13: invalid type: null, expected a string"),
        ("{\"text\": \"a\"", "line 1, column 12: EOF while parsing an object"),
        ("[\"text\"]\n", "line 1: not an object"),
        ("{\"text\": \"\\ud800\"}\n", "line 1, column 17: unexpected end of hex escape"),
    ];
    for (text, found) in cases {
        assert_eq!(refused(&file(&dir, "bad.jsonl", text)), format!("FILE: {found}, {cure}"), "{text}");
    }
    let latin1 = file(&dir, "bad.jsonl", b"{\"text\": \"caf\xe9\"}");
    assert_eq!(refused(&latin1), format!("FILE: line 1, column 14: invalid unicode code point, {cure}"));
}

#[test]
fn after_an_error_nothing_follows() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir, "1.jsonl", "{\"text\": \"a\"}\n{}\n{\"text\": \"b\"}\n");
    file(&dir, "2.txt", "c");
    for path in [dir.path().to_path_buf(), dir.path().join("1.jsonl")] {
        let rows: Vec<bool> = documents(&path).unwrap().map(|row| row.is_ok()).collect();
        assert_eq!(rows, [true, false]);
    }
}

#[test]
fn directories_are_walked_in_sorted_order() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir, "b.txt", "second");
    file(&dir, "a/z.jsonl", "{\"text\": \"first\"}\n");
    file(&dir, "c.md", "not read");
    file(&dir, "c/d/e.txt", "third");
    assert_eq!(all(documents(dir.path())).unwrap(), ["first", "second", "third"]);
    assert_eq!(joined(dir.path()).unwrap(), "first\n\nsecond\n\nthird");
    let empty = dir.path().join("none");
    fs::create_dir(&empty).unwrap();
    assert!(refused(&empty).starts_with("FILE: a directory without text files, expected .txt"));
}

#[test]
fn standard_input_is_sniffed() {
    let read = |bytes: &'static [u8]| all(of_stream(Path::new("-"), BufReader::with_capacity(2, bytes)));
    assert_eq!(read(b" \n\n {\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap(), ["a", "b"]);
    assert_eq!(read(b"  \n plain {\n").unwrap(), ["  \n plain {\n"]);
    for blank in [&b""[..], b" \n \n"] {
        assert_eq!(read(blank).unwrap_err().to_string(), "-: no text, expected at least one document; check the file");
    }
}

#[test]
fn files_without_text_and_unknown_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = "FILE: no text, expected at least one document; check the file";
    assert_eq!(refused(&file(&dir, "a.txt", "")), nothing);
    assert_eq!(refused(&file(&dir, "a.jsonl", "\n\n")), nothing);
    assert_eq!(refused(&file(&dir, "b.jsonl", "{\"text\": \"\"}\n")), nothing);
    assert_eq!(refused(&file(&dir, "a.jsonl.zst", zstd::encode_all(&b""[..], 1).unwrap())), nothing);
    assert!(joined(&file(&dir, "a.txt", "")).is_err());
    let known = "expected .txt, .jsonl, .jsonl.zst or .parquet; rename or convert it";
    assert_eq!(refused(&file(&dir, "a.csv.gz", "x")), format!("FILE: a file ending in \".csv.gz\", {known}"));
    assert_eq!(refused(&file(&dir, "README", "x")), format!("FILE: a file without an extension, {known}"));
    assert!(refused(&dir.path().join("gone.txt")).ends_with("No such file or directory; check the path"));
}

#[test]
fn parquet_files_with_another_column_are_refused() {
    assert_eq!(
        refused(&fixture("no_text.parquet")),
        "FILE: the columns id, content, expected a string column \"text\"; rename the column that holds the text"
    );
    assert_eq!(
        refused(&fixture("numbers.parquet")),
        "FILE: a column \"text\" of type INT64, expected strings; convert the column"
    );
    assert!(refused(&fixture("lists.parquet")).contains("the columns text.list.element"));
}

#[test]
fn cut_off_and_damaged_files_give_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut noise = 1u32;
    let body: String = (0..2000)
        .map(|i| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            format!("{{\"text\": \"{i} {noise}\"}}\n")
        })
        .collect();
    let packed = zstd::encode_all(body.as_bytes(), 1).unwrap();
    for cut in [1, 5, packed.len() / 2, packed.len() - 1] {
        let message = refused(&file(&dir, "cut.jsonl.zst", &packed[..cut]));
        assert!(message.contains("a damaged or cut off zstd stream"), "{cut}: {message}");
    }
    assert!(refused(&file(&dir, "text.jsonl.zst", &body)).contains("line 1: a damaged or cut off zstd stream"));

    let whole = fs::read(fixture("snappy.parquet")).unwrap();
    for cut in [1, 4, 100, whole.len() - 1] {
        let message = refused(&file(&dir, "cut.parquet", &whole[..cut]));
        assert!(message.contains("a damaged Parquet file"), "{cut}: {message}");
    }
}

/// Each byte of a file changed in turn: text or an error, never a panic.
#[test]
fn no_changed_byte_makes_the_readers_panic() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["snappy.parquet", "zstd.parquet", "gzip.parquet", "frames.jsonl.zst"] {
        let good = fs::read(fixture(name)).unwrap();
        let path = file(&dir, name, &good);
        let copy = File::options().write(true).open(&path).unwrap();
        for (at, &byte) in good.iter().enumerate() {
            for flip in [0x01, 0x80, 0xff] {
                copy.write_at(&[byte ^ flip], at as u64).unwrap();
                if let Err(e) = all(documents(&path)) {
                    assert!(!e.to_string().contains('\n'), "{name} {at} {flip}: {e}");
                }
            }
            copy.write_at(&[byte], at as u64).unwrap();
        }
    }
}
