//! Making a tensor while the one before it is written, in two buffers that serve them all: memory that was never
//! touched before costs more than most of the work that is done in it.

use std::mem::swap;

use crate::error::Result;
use crate::format::tensor::Tensor;

/// A tensor on its way to a file.
#[derive(Default)]
pub struct Made {
    buffer: Vec<u8>,
    used: usize,
    stored: Option<Tensor>,
}

impl Made {
    /// Room for a tensor of `len` bytes, which hold anything.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        (self.used, self.stored) = (len, None);
        &mut self.buffer[..len]
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// It is copied as it lies in the input.
    pub fn store(&mut self, tensor: Tensor) {
        self.stored = Some(tensor);
    }

    pub fn stored(&self) -> Option<&Tensor> {
        self.stored.as_ref()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }
}

/// `make` and `write` see the specs in order, `make` one ahead.
pub fn ahead<S: Sync>(
    specs: &[S],
    mut make: impl FnMut(&S, &mut Made) -> Result<()> + Send,
    mut write: impl FnMut(&S, &Made) -> Result<()> + Send,
) -> Result<()> {
    let (mut now, mut next) = (Made::default(), Made::default());
    if let Some(spec) = specs.first() {
        make(spec, &mut now)?;
    }
    for (i, spec) in specs.iter().enumerate() {
        let (written, made) =
            rayon::join(|| write(spec, &now), || specs.get(i + 1).map_or(Ok(()), |spec| make(spec, &mut next)));
        written?;
        made?;
        swap(&mut now, &mut next);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn each_is_written_as_it_was_made() {
        for count in 0..5usize {
            let specs: Vec<usize> = (0..count).map(|i| (i * 7 + 3) % 5).collect();
            let mut written = Vec::new();
            let make = |n: &usize, made: &mut Made| {
                made.put(&vec![*n as u8; *n]);
                Ok(())
            };
            let write = |_: &usize, made: &Made| {
                written.push(made.bytes().to_vec());
                Ok(())
            };
            ahead(&specs, make, write).unwrap();
            assert_eq!(written, specs.iter().map(|n| vec![*n as u8; *n]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_it() {
        let mut written = 0;
        let make = |n: &usize, _: &mut Made| if *n < 2 { Ok(()) } else { Err(Error::usage("two", "less")) };
        let write = |_: &usize, _: &Made| {
            written += 1;
            Ok(())
        };
        assert!(ahead(&[0, 1, 2, 3], make, write).is_err());
        assert_eq!(written, 2);
    }
}
