//! D = alpha op(A) op(B) + beta C (+ bias), column-major, for each of a batch. Sums are made in f32 in order of k. What
//! the real library leaves undefined is an error here: operands that are not written or not there, and results that
//! overlap operands.

use crate::exec::op::{Half, Round};
use crate::memory::{DeviceMemory, Range};

/// Element types by number of cudaDataType_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F32 = 0,
    F64 = 1,
    F16 = 2,
    Bf16 = 14,
}

impl Element {
    pub fn from_number(number: u32) -> Option<Self> {
        [Element::F32, Element::F64, Element::F16, Element::Bf16].into_iter().find(|element| *element as u32 == number)
    }

    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F64 => 8,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        let half = |of: Half| of.to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
        match self {
            Element::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Element::F64 => f64::from_le_bytes(std::array::from_fn(|i| bytes[i])) as f32,
            Element::F16 => half(Half::F16),
            Element::Bf16 => half(Half::Bf16),
        }
    }

    fn write(self, value: f32, to: &mut Vec<u8>) {
        match self {
            Element::F32 => to.extend(value.to_le_bytes()),
            Element::F64 => to.extend((value as f64).to_le_bytes()),
            Element::F16 => to.extend(Half::F16.round(value as f64, Round::Nearest).to_le_bytes()),
            Element::Bf16 => to.extend(Half::Bf16.nearest(value).to_le_bytes()),
        }
    }
}

/// A batch of matrices in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    pub address: u64,
    pub element: Element,
    pub rows: usize,
    pub columns: usize,
    /// Leading dimension: elements from a column to the next.
    pub leading: i64,
    /// Elements from a matrix to the next of the batch.
    pub stride: i64,
}

#[derive(Debug, Clone)]
pub struct Product {
    pub transpose: [bool; 2],
    pub alpha: f32,
    pub beta: f32,
    pub a: Matrix,
    pub b: Matrix,
    pub c: Matrix,
    pub d: Matrix,
    pub batch: usize,
    /// One element a row of D.
    pub bias: Option<(u64, Element)>,
    /// Spoiled by the product.
    pub workspace: Option<(u64, usize)>,
}

impl Matrix {
    fn offset(&self, batch: usize, column: usize) -> Option<u64> {
        let elements = (self.stride as i128 * batch as i128) + (self.leading as i128 * column as i128);
        u64::try_from(elements).ok()?.checked_mul(self.element.bytes() as u64)
    }

    fn column<'m>(&self, memory: &'m DeviceMemory, batch: usize, column: usize) -> Result<Range<'m>, String> {
        let offset = self.offset(batch, column).ok_or("a stride is too large or negative")?;
        let fault = |fault| format!("column {column} of matrix {batch}: {fault}");
        memory.range(self.address.wrapping_add(offset), self.rows * self.element.bytes()).map_err(fault)
    }

    /// First and last byte, and one more.
    fn extent(&self, batch: usize) -> Option<(u64, u64)> {
        let last = self.offset(batch.checked_sub(1)?, self.columns.checked_sub(1)?)?;
        Some((self.address, self.address + last + (self.rows * self.element.bytes()) as u64))
    }

    fn overlaps(&self, other: &Matrix, batch: usize) -> bool {
        match (self.extent(batch), other.extent(batch)) {
            (Some(own), Some(other)) => own.0 < other.1 && other.0 < own.1,
            _ => false,
        }
    }

    /// What can be said without looking into memory.
    fn check(&self, name: &str, rows: usize, columns: usize) -> Result<(), String> {
        if (self.rows, self.columns) != (rows, columns) {
            return Err(format!("{name} is {} x {}, expected {rows} x {columns}", self.rows, self.columns));
        }
        if self.leading < self.rows.max(1) as i64 {
            return Err(format!(
                "the leading dimension of {name} is {}, less than its {} rows (column-major)",
                self.leading, self.rows
            ));
        }
        if !self.address.is_multiple_of(self.element.bytes() as u64) {
            return Err(format!("{name} at {:#x} is not aligned to its elements", self.address));
        }
        Ok(())
    }

    /// Element (i, j) at `j * rows + i`.
    fn read(&self, memory: &DeviceMemory, batch: usize, check: bool) -> Result<Vec<f32>, String> {
        let mut values = Vec::with_capacity(self.rows * self.columns);
        for column in 0..self.columns {
            let bytes = self.column(memory, batch, column)?.read(check)?;
            values.extend(bytes.chunks_exact(self.element.bytes()).map(|bytes| self.element.read(bytes)));
        }
        Ok(values)
    }
}

impl Product {
    pub fn name(&self) -> String {
        let (m, n, k) = self.shape();
        format!("matrix product {m} x {n} x {k}")
    }

    fn shape(&self) -> (usize, usize, usize) {
        let k = if self.transpose[0] { self.a.rows } else { self.a.columns };
        (self.d.rows, self.d.columns, k)
    }

    /// When it is submitted: shapes, leading dimensions, and whether all of it is in memory.
    pub fn check(&self, memory: &DeviceMemory) -> Result<(), String> {
        let (m, n, k) = self.shape();
        let turned = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        let (rows, columns) = turned(m, k, self.transpose[0]);
        self.a.check("A", rows, columns)?;
        let (rows, columns) = turned(k, n, self.transpose[1]);
        self.b.check("B", rows, columns)?;
        self.c.check("C", m, n)?;
        self.d.check("D", m, n)?;
        if m == 0 || n == 0 || self.batch == 0 {
            return Ok(());
        }
        if self.d.overlaps(&self.a, self.batch) || self.d.overlaps(&self.b, self.batch) {
            return Err("D overlaps A or B".into());
        }
        if self.c != self.d && self.beta != 0.0 && self.d.overlaps(&self.c, self.batch) {
            return Err("D overlaps C and is not the same matrix".into());
        }
        let read = [("A", &self.a), ("B", &self.b), ("C", &self.c), ("D", &self.d)];
        let read = read.into_iter().filter(|(name, _)| *name != "C" || self.beta != 0.0);
        for (name, matrix) in read.filter(|(_, matrix)| matrix.rows > 0 && matrix.columns > 0) {
            for (batch, column) in [(0, 0), (self.batch - 1, matrix.columns - 1)] {
                matrix.column(memory, batch, column).map_err(|what| format!("{name}: {what}"))?;
            }
        }
        Ok(())
    }

    pub fn run(&self, memory: &DeviceMemory, check: bool) -> Result<(), String> {
        let (m, n, k) = self.shape();
        let bias = match self.bias {
            None => vec![0.0; m],
            Some((address, element)) => {
                let bias = Matrix { address, element, rows: m, columns: 1, leading: m as i64, stride: 0 };
                bias.read(memory, 0, check).map_err(|what| format!("bias: {what}"))?
            }
        };
        for batch in 0..self.batch {
            let read = |matrix: &Matrix, name: &str| {
                matrix.read(memory, batch, check).map_err(|what| format!("{name}: {what}"))
            };
            let a = columns_of(&read(&self.a, "A")?, m, k, self.transpose[0]);
            let b = columns_of(&read(&self.b, "B")?, k, n, self.transpose[1]);
            let c = if self.beta != 0.0 { read(&self.c, "C")? } else { Vec::new() };
            for column in 0..n {
                let mut sum = vec![0f32; m];
                accumulate(&mut sum, &a, &b[column * k..(column + 1) * k]);
                let mut bytes = Vec::with_capacity(m * self.d.element.bytes());
                for (row, sum) in sum.iter().enumerate() {
                    let old = if self.beta != 0.0 { self.beta * c[column * m + row] } else { 0.0 };
                    self.d.element.write(self.alpha * sum + old + bias[row], &mut bytes);
                }
                self.d.column(memory, batch, column)?.write(&bytes);
            }
        }
        if let Some((address, len)) = self.workspace {
            let range = memory.range(address, len).map_err(|fault| format!("workspace: {fault}"))?;
            range.note(true);
            range.allocation.bytes.mark_unwritten(range.at, range.len);
        }
        Ok(())
    }
}

/// The columns of op(X), which is `rows` x `columns`.
fn columns_of(values: &[f32], rows: usize, columns: usize, transposed: bool) -> Vec<f32> {
    if !transposed {
        return values.to_vec();
    }
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// sum += A b, a column of A at a time.
fn accumulate(sum: &mut [f32], a: &[f32], b: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has it.
        return unsafe { accumulate_avx2(sum, a, b) };
    }
    accumulate_plain(sum, a, b);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn accumulate_avx2(sum: &mut [f32], a: &[f32], b: &[f32]) {
    accumulate_plain(sum, a, b);
}

#[inline(always)]
fn accumulate_plain(sum: &mut [f32], a: &[f32], b: &[f32]) {
    for (column, y) in a.chunks_exact(sum.len().max(1)).zip(b) {
        for (sum, x) in sum.iter_mut().zip(column) {
            *sum += x * y;
        }
    }
}
