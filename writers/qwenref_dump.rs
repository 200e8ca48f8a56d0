// SPDX-License-Identifier: Apache-2.0
//! Dumps an engine's tensors for `engine verify` (qwenref), as one safetensors file. One module to copy, no crates.
//!
//!     qwenref_dump::facts(&[("dtype", "bf16"), ("device", "cuda")]);     // of the run, before the first dump; optional
//!     qwenref_dump::dump_ids("tokens", &ids);                            // the ids of this forward pass, once
//!     qwenref_dump::dump("attn_norm", Some(layer), &x, &[rows, columns]);
//!     qwenref_dump::dump("attn_scores", Some(layer), &s, &[heads, rows, keys]);
//!     qwenref_dump::dump("lm_head", None, &logits, &[1, vocabulary]);    // None: the whole model's
//!
//! Nothing happens unless the environment has QWENREF_DUMP=FILE. A stage that was dumped already begins the next pass.
//! Calls from several threads wait for each other. Between two calls the file is whole.

#![allow(dead_code)] // nobody needs all of it

use std::collections::HashSet;
use std::fs::File;
use std::io::{Result, Seek, SeekFrom, Write};
use std::sync::Mutex;

const ROOM: usize = 4 << 20; // bytes of header: some 40,000 tensors

struct Dump {
    file: File,
    used: usize,
    bytes: usize,
    pass: usize,
    names: HashSet<String>,
}

enum State {
    Unasked(String),
    Off,
    On(Dump),
}

static STATE: Mutex<State> = Mutex::new(State::Unasked(String::new()));

fn open(facts: &str) -> State {
    let Some(path) = std::env::var_os("QWENREF_DUMP") else { return State::Off };
    let start = |mut file: File| -> Result<Dump> {
        let text = format!(r#"{{"__metadata__":{{"format":"qwenref-dump-1","producer":"qwenref_dump.rs"{facts}}}}}"#);
        if text.len() > ROOM {
            return Err(std::io::Error::other("more facts than the header has room for"));
        }
        let mut header = vec![b' '; ROOM + 8];
        header[..8].copy_from_slice(&(ROOM as u64).to_le_bytes());
        header[8..8 + text.len()].copy_from_slice(text.as_bytes());
        file.write_all(&header)?;
        Ok(Dump { file, used: text.len(), bytes: 0, pass: 0, names: HashSet::new() })
    };
    match File::create(&path).and_then(start) {
        Ok(dump) => State::On(dump),
        Err(error) => {
            eprintln!("qwenref_dump: {}: {error}; nothing is dumped", path.to_string_lossy());
            State::Off
        }
    }
}

impl Dump {
    fn put(&mut self, stage: &str, layer: Option<usize>, dtype: &str, data: &[u8], shape: &[usize]) -> Result<()> {
        let name = layer.map_or(stage.to_string(), |i| format!("layer-{i}/{stage}"));
        if !self.names.insert(name.clone()) {
            self.pass += 1;
            self.names = HashSet::from([name.clone()]);
        }
        let key = if self.pass > 0 { format!("phase-{}/{name}", self.pass) } else { name };
        let sizes: Vec<String> = shape.iter().map(|n| n.to_string()).collect();
        let entry = format!(
            ",\"{key}\":{{\"dtype\":\"{dtype}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}}}",
            sizes.join(","),
            self.bytes,
            self.bytes + data.len()
        );
        if self.used + entry.len() > ROOM || key.contains(['"', '\\']) {
            return Err(std::io::Error::other(format!("{key}: the header is full, or the name has quotes")));
        }
        self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(data)?;
        self.file.seek(SeekFrom::Start((8 + self.used - 1) as u64))?; // the brace that closes the header
        self.file.write_all(entry.as_bytes())?;
        self.used += entry.len() - 1;
        self.bytes += data.len();
        Ok(())
    }
}

/// What is to be known of the run, in words: `dtype`, `device`, a commit. Later than the first dump it does nothing.
pub fn facts(told: &[(&str, &str)]) {
    let mut state = STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let State::Unasked(facts) = &mut *state {
        for (name, value) in told {
            let plain = |text: &str| text.replace(|c: char| c.is_control() || c == '"' || c == '\\', " ");
            facts.push_str(&format!(r#","{}":"{}""#, plain(name), plain(value)));
        }
    }
}

/// Values of any type: `dtype` in safetensors' words (F32, F16, BF16, I32), `data` little-endian.
pub fn dump_bytes(stage: &str, layer: Option<usize>, dtype: &str, data: &[u8], shape: &[usize]) {
    let mut state = STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let State::Unasked(facts) = &*state {
        *state = open(facts);
    }
    if let State::On(dump) = &mut *state {
        if let Err(error) = dump.put(stage, layer, dtype, data, shape) {
            eprintln!("qwenref_dump: {error}; nothing more is dumped");
            *state = State::Off;
        }
    }
}

/// float32 values, in row-major order.
pub fn dump(stage: &str, layer: Option<usize>, x: &[f32], shape: &[usize]) {
    let data: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    dump_bytes(stage, layer, "F32", &data, shape);
}

/// "tokens" or "positions" of this pass.
pub fn dump_ids(what: &str, ids: &[i32]) {
    let data: Vec<u8> = ids.iter().flat_map(|v| v.to_le_bytes()).collect();
    dump_bytes(what, None, "I32", &data, &[ids.len()]);
}
