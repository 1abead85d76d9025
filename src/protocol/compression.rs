//! Compressed bodies, as Kombu writes them. Decompression stops at a size limit.

use std::io::{self, Read, Write};
use std::panic;

use super::DecodeError;
use super::headers::shown;

/// The maximum memory for a stream's dictionary: twice what Kombu's settings need.
#[cfg(feature = "compression")]
const DICTIONARY: u32 = 17 * 1024 * 1024;

/// Decompresses `body`, up to `limit` bytes.
pub(super) fn inflate(method: &str, body: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
    // The decoders are third-party code, and the stream is untrusted: a panic of a decoder must only affect
    // this message.
    let read = panic::catch_unwind(|| read(method, body, limit))
        .unwrap_or_else(|_| Some(Err(io::Error::other("the decoder panicked"))));
    let Some(inflated) = read else {
        let reason = format!("header `compression` is {:?}, which is not supported", shown(method));
        return Err(DecodeError::new(reason));
    };
    let body = inflated.map_err(|error| {
        DecodeError::new(format!("cannot decompress the body ({method}): {error}"))
    })?;
    if body.len() > limit {
        let reason = format!("the decompressed body is over the limit of {limit} bytes");
        return Err(DecodeError::new(reason));
    }
    Ok(body)
}

/// Returns `None` if the method is not one of Kombu's.
fn read(method: &str, body: &[u8], limit: usize) -> Option<io::Result<Vec<u8>>> {
    match method {
        // A zlib stream, despite its name.
        "application/x-gzip" | "gzip" | "zlib" => {
            Some(capped(flate2::read::ZlibDecoder::new(body), limit))
        }
        _ => read_others(method, body, limit),
    }
}

#[cfg(feature = "compression")]
fn read_others(method: &str, body: &[u8], limit: usize) -> Option<io::Result<Vec<u8>>> {
    Some(match method {
        "application/x-bz2" | "bzip2" | "bzip" => capped(bzip2::read::BzDecoder::new(body), limit),
        "application/x-brotli" | "brotli" => {
            capped(brotli_decompressor::Decompressor::new(body, 4096), limit)
        }
        "application/x-lzma" | "lzma" | "xz" => {
            capped(lzma_rust2::XzReader::new_mem_limit(body, false, DICTIONARY / 1024), limit)
        }
        "application/zstd" | "zstd" | "zstandard" => {
            ruzstd::decoding::StreamingDecoder::new_with_max_window_size(body, DICTIONARY.into())
                .map_err(io::Error::other)
                .and_then(|stream| capped(stream, limit))
        }
        _ => return None,
    })
}

#[cfg(not(feature = "compression"))]
fn read_others(method: &str, _: &[u8], _: usize) -> Option<io::Result<Vec<u8>>> {
    let is_known = matches!(
        method,
        "application/x-bz2"
            | "bzip2"
            | "bzip"
            | "application/x-brotli"
            | "brotli"
            | "application/x-lzma"
            | "lzma"
            | "xz"
            | "application/zstd"
            | "zstd"
            | "zstandard"
    );
    let missing = "build countersign with the feature `compression`";
    is_known.then(|| Err(io::Error::new(io::ErrorKind::Unsupported, missing)))
}

/// Reads one byte more than allowed, so that the caller can detect a body over the limit.
fn capped(stream: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    stream.take((limit as u64).saturating_add(1)).read_to_end(&mut body)?;
    Ok(body)
}

/// Compresses into a zlib stream, which every Celery worker can read.
pub(super) fn deflate(body: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory cannot fail.
    let _ = stream.write_all(body);
    stream.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// `[[1], {}, {}]`, compressed by Python's own modules.
    const SAMPLES: [(&str, &str); 5] = [
        ("application/x-gzip", "eJyLjjaM1VGorgXhWAAbqAQq"),
        (
            "application/x-bz2",
            "QlpoOTFBWSZTWYpxR/cAAAMagEAEIAAACgAKIAAhKB6QhgLOiY6kPF3JFOFCQinFH9w=",
        ),
        ("application/x-brotli", "CwaAW1sxXSwge30sIHt9XQM="),
        (
            "application/x-lzma",
            "/Td6WFoAAATm1rRGAgAhARYAAAB0L+WjAQAMW1sxXSwge30sIHt9XQAAAAD5mhlypRddrgABJQ1xGcS2H7bzfQEAAAAABFla",
        ),
        ("application/zstd", "KLUv/SANaQAAW1sxXSwge30sIHt9XQ=="),
    ];

    #[cfg(feature = "compression")]
    #[test]
    fn every_method_of_kombu_is_read() {
        for (method, sample) in SAMPLES {
            let body = STANDARD.decode(sample).unwrap();
            assert_eq!(inflate(method, &body, 1024).unwrap(), b"[[1], {}, {}]", "{method}");
        }
    }

    #[cfg(not(feature = "compression"))]
    #[test]
    fn without_the_feature_the_error_names_it() {
        for (method, sample) in SAMPLES.into_iter().skip(1) {
            let body = STANDARD.decode(sample).unwrap();
            let reason = inflate(method, &body, 1024).unwrap_err().reason;
            assert!(reason.contains("the feature `compression`"), "{reason}");
            assert!(reason.contains(method), "{reason}");
        }
        let (zlib, sample) = SAMPLES[0];
        let body = STANDARD.decode(sample).unwrap();
        assert_eq!(inflate(zlib, &body, 1024).unwrap(), b"[[1], {}, {}]");
    }

    #[test]
    fn a_truncated_stream_is_refused() {
        for (method, sample) in SAMPLES {
            let body = STANDARD.decode(sample).unwrap();
            for end in 0..body.len() / 2 {
                assert!(inflate(method, &body[..end], 1024).is_err(), "{method} to {end}");
            }
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = deflate(&vec![b' '; 10_000_000]);
        assert!(bomb.len() < 100_000);
        let reason = inflate("application/x-gzip", &bomb, 4096).unwrap_err().reason;
        assert!(reason.contains("over the limit of 4096 bytes"), "{reason}");
    }

    #[cfg(feature = "compression")]
    #[test]
    fn a_dictionary_of_gigabytes_is_never_allocated() {
        let (method, sample) = SAMPLES[3];
        let mut body = STANDARD.decode(sample).unwrap();
        // The LZMA2 filter's one property byte: 40 means 4 GiB. The header's checksum follows.
        let filter = body.windows(2).position(|pair| pair == [0x21, 0x01]).unwrap();
        body[filter + 2] = 40;
        let end = 12 + 4 * (usize::from(body[12]) + 1) - 4;
        let mut checksum = flate2::Crc::new();
        checksum.update(&body[12..end]);
        body[end..end + 4].copy_from_slice(&checksum.sum().to_le_bytes());
        let reason = inflate(method, &body, 1024).unwrap_err().reason;
        assert!(reason.contains("memory"), "{reason}");
    }

    #[test]
    fn a_body_of_exactly_the_limit_is_accepted() {
        let body = deflate(&[b' '; 4096]);
        assert_eq!(inflate("application/x-gzip", &body, 4096).unwrap().len(), 4096);
        assert!(inflate("application/x-gzip", &body, 4095).is_err());
    }

    #[test]
    fn an_unknown_method_is_named() {
        let reason = inflate("application/x-zoo", b"", 10).unwrap_err().reason;
        assert_eq!(reason, "header `compression` is \"application/x-zoo\", which is not supported");
    }
}
