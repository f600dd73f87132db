//! The string column `text` of a Parquet file (Apache Parquet format, apache/parquet-format), row group by row group.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::Documents;
use crate::error::{Error, Result};

const COLUMN: &str = "text";
/// Rows decoded at a time.
const BATCH: usize = 64;

struct Rows {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    nullable: bool,
    next_group: usize,
    group: Option<ColumnReaderImpl<ByteArrayType>>,
    batch: VecDeque<ByteArray>,
    row: u64,
}

pub fn rows(path: &Path, file: File) -> Result<Documents> {
    let file = guarded(path, || SerializedFileReader::new(file).map_err(|e| damaged(path, e)))?;
    let (column, nullable) = text_column(path, &file)?;
    let path = path.to_path_buf();
    let mut rows = Rows { path, file, column, nullable, next_group: 0, group: None, batch: VecDeque::new(), row: 0 };
    Ok(Box::new(std::iter::from_fn(move || rows.next().transpose())))
}

/// Index of the column and whether its values may be null.
fn text_column(path: &Path, file: &SerializedFileReader<File>) -> Result<(usize, bool)> {
    let columns = file.metadata().file_metadata().schema_descr().columns();
    let found = columns.iter().position(|c| c.path().parts() == [COLUMN]);
    let Some(column) = found else {
        let names: Vec<String> = columns.iter().map(|c| c.path().string()).collect();
        let found = format!("the columns {}", names.join(", "));
        return Err(Error::input(path, found, "a string column \"text\"", "rename the column that holds the text"));
    };
    let descr = &columns[column];
    if descr.physical_type() != Type::BYTE_ARRAY || descr.max_rep_level() > 0 || descr.max_def_level() > 1 {
        let found = format!("a column \"text\" of type {}", descr.physical_type());
        return Err(Error::input(path, found, "strings", "convert the column"));
    }
    Ok((column, descr.max_def_level() > 0))
}

impl Rows {
    /// The next value that is not null.
    fn next(&mut self) -> Result<Option<String>> {
        while self.batch.is_empty() {
            let path = self.path.clone();
            if !guarded(&path, || self.fill())? {
                return Ok(None);
            }
        }
        let Some(value) = self.batch.pop_front() else { return Ok(None) };
        self.row += 1;
        String::from_utf8(value.data().to_vec()).map(Some).map_err(|_| {
            let found = format!("value {} of column \"text\" that is not UTF-8", self.row);
            Error::input(&self.path, found, "UTF-8 text", "convert the column")
        })
    }

    /// Decodes some rows; false at the end of the file. A batch may come out empty: its rows were all null.
    fn fill(&mut self) -> Result<bool> {
        let Some(group) = &mut self.group else {
            return self.open_group();
        };
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let levels = self.nullable.then_some(&mut levels);
        let (records, ..) = group.read_records(BATCH, levels, None, &mut values).map_err(|e| damaged(&self.path, e))?;
        if records == 0 {
            self.group = None;
        }
        self.batch = values.into();
        Ok(true)
    }

    fn open_group(&mut self) -> Result<bool> {
        if self.next_group == self.file.num_row_groups() {
            return Ok(false);
        }
        let reader = self.file.get_row_group(self.next_group).and_then(|group| group.get_column_reader(self.column));
        self.next_group += 1;
        match reader.map_err(|e| damaged(&self.path, e))? {
            reader @ ColumnReader::ByteArrayColumnReader(_) => self.group = Some(get_typed_column_reader(reader)),
            _ => return Err(damaged(&self.path, ParquetError::General("column types disagree".to_string()))),
        }
        Ok(true)
    }
}

/// The decoder checks most of what it reads, but panics on some damaged pages. Such a panic ends the file with an
/// error like any other damage, and prints nothing.
fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    thread_local!(static DECODING: Cell<bool> = const { Cell::new(false) });
    static SILENCED: Once = Once::new();
    SILENCED.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !DECODING.get() {
                usual(info);
            }
        }));
    });
    DECODING.set(true);
    let decoded = panic::catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    decoded.unwrap_or_else(|_| Err(damaged(path, ParquetError::General("a page that cannot be decoded".to_string()))))
}

fn damaged(path: &Path, e: ParquetError) -> Error {
    let reason = e.to_string().replace('\n', " ");
    Error::input(path, format!("a damaged Parquet file ({reason})"), "a complete file", "fetch or make it again")
}
