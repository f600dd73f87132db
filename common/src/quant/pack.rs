//! Dense packing of b-bit codes into 32-bit words, least significant bit first, across word borders: the stream of
//! compressed-tensors ≥ 0.17 (`pack-quantized`) and, transposed, of GPTQ.

/// Words that hold `n` codes of `bits` bits.
pub fn words(n: usize, bits: u32) -> usize {
    (n * bits as usize).div_ceil(32)
}

/// Packs unsigned codes (< 2^bits, 2 to 8 bits) into `out`, which has [`words`] elements.
pub fn pack(codes: &[u8], bits: u32, out: &mut [u32]) {
    pack_bytes(codes, bits, bytemuck::cast_slice_mut(out));
    for word in out {
        *word = u32::from_le(*word);
    }
}

/// [`pack`] into the bytes of little-endian words. Eight codes of b bits are b bytes of the stream, whatever b is.
#[inline(always)]
pub fn pack_bytes(codes: &[u8], bits: u32, out: &mut [u8]) {
    assert_eq!(out.len(), 4 * words(codes.len(), bits));
    match bits {
        2 => pack_fours(codes, out),
        3 => pack_width::<3>(codes, out),
        4 => pack_pairs(codes, out),
        5 => pack_width::<5>(codes, out),
        6 => pack_width::<6>(codes, out),
        7 => pack_width::<7>(codes, out),
        _ => {
            out[..codes.len()].copy_from_slice(codes);
            out[codes.len()..].fill(0);
        }
    }
}

/// Four codes of two bits in a byte.
#[inline(always)]
fn pack_fours(codes: &[u8], out: &mut [u8]) {
    let (fours, rest) = codes.as_chunks::<4>();
    let byte = |codes: [u8; 4]| {
        let x = u32::from_le_bytes(codes);
        (x | x >> 6 | x >> 12 | x >> 18) as u8
    };
    let (whole, last) = out.split_at_mut(fours.len());
    for (out, codes) in whole.iter_mut().zip(fours) {
        *out = byte(*codes);
    }
    last.fill(0);
    if let Some(last) = last.first_mut() {
        let mut padded = [0; 4];
        padded[..rest.len()].copy_from_slice(rest);
        *last = byte(padded);
    }
}

/// Two codes of four bits in a byte.
#[inline(always)]
fn pack_pairs(codes: &[u8], out: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks::<2>();
    let (whole, last) = out.split_at_mut(pairs.len());
    for (out, codes) in whole.iter_mut().zip(pairs) {
        let x = u16::from_le_bytes(*codes);
        *out = (x | x >> 4) as u8;
    }
    last.fill(0);
    if let (Some(last), [code]) = (last.first_mut(), rest) {
        *last = *code;
    }
}

#[inline(always)]
fn pack_width<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    const RUN: usize = 32;
    for (codes, out) in codes.chunks(8 * RUN).zip(out.chunks_mut(BITS * RUN)) {
        let mut eights = [0u64; RUN];
        if codes.len() == 8 * RUN {
            for (eight, codes) in eights.iter_mut().zip(codes.chunks_exact(8)) {
                *eight = gather::<BITS>(codes.try_into().unwrap_or_default());
            }
            for (out, eight) in out.chunks_exact_mut(BITS).zip(eights) {
                out.copy_from_slice(&eight.to_le_bytes()[..BITS]);
            }
        } else {
            for (eight, codes) in eights.iter_mut().zip(codes.chunks(8)) {
                let mut padded = [0; 8];
                padded[..codes.len()].copy_from_slice(codes);
                *eight = gather::<BITS>(padded);
            }
            for (out, eight) in out.chunks_mut(BITS).zip(eights) {
                out.copy_from_slice(&eight.to_le_bytes()[..out.len()]);
            }
        }
    }
}

/// Eight codes of BITS bits in the low 8·BITS bits.
#[inline(always)]
fn gather<const BITS: usize>(codes: [u8; 8]) -> u64 {
    // Neighbours move together: bytes to pairs, pairs to fours, fours to eight.
    let x = u64::from_le_bytes(codes);
    let x = x & 0x00FF_00FF_00FF_00FF | (x & 0xFF00_FF00_FF00_FF00) >> (8 - BITS);
    let x = x & 0x0000_FFFF_0000_FFFF | (x & 0xFFFF_0000_FFFF_0000) >> (16 - 2 * BITS);
    x & 0x0000_0000_FFFF_FFFF | (x & 0xFFFF_FFFF_0000_0000) >> (32 - 4 * BITS)
}

/// The reverse of [`pack`]: hands out `n` codes in order, from little-endian words.
#[inline(always)]
pub fn unpack(packed: &[u8], bits: u32, n: usize, mut each: impl FnMut(usize, u8)) {
    assert_eq!(packed.len(), 4 * words(n, bits));
    let mask = (1u64 << bits) - 1;
    let (mut window, mut filled) = (0u64, 0);
    let mut words = packed.chunks_exact(4);
    for k in 0..n {
        if filled < bits {
            let word = words.next().map_or(0, |w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
            window |= (word as u64) << filled;
            filled += 32;
        }
        each(k, (window & mask) as u8);
        window >>= bits;
        filled -= bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The word formula of the format: element e occupies bits e·b .. e·b+b−1 of the stream.
    #[test]
    fn every_bit_is_where_the_format_says() {
        for bits in 2..=8 {
            for n in [1, 7, 32, 33, 100, 255, 256, 300, 1024] {
                let codes: Vec<u8> = (0..n).map(|i| ((i * 37 + 11) % (1 << bits)) as u8).collect();
                let mut packed = vec![0; words(n, bits)];
                pack(&codes, bits, &mut packed);
                for (e, code) in codes.iter().enumerate() {
                    for j in 0..bits as usize {
                        let bit = e * bits as usize + j;
                        assert_eq!(packed[bit / 32] >> (bit % 32) & 1, (*code as u32) >> j & 1, "{bits} {n} {e}");
                    }
                }
                let bytes: Vec<u8> = packed.iter().flat_map(|w| w.to_le_bytes()).collect();
                let mut back = vec![0; n];
                unpack(&bytes, bits, n, |k, code| back[k] = code);
                assert_eq!(back, codes);
            }
        }
    }
}
