//! The files of a data directory that are not RocksDB's: LOCK, IDENTITY, WATERMARK, and
//! snapshots that are arriving.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use fs4::fs_std::FileExt as Lock;

use crate::disk::Scratch;
use crate::error::StoreError;
use crate::identity::Home;
use crate::watermark::{SLOT_BYTES, Side, Slots};

/// A data directory that this process holds.
pub(crate) struct Directory {
    path: PathBuf,
    watermark: std::sync::OnceLock<File>,
    /// Released last, when the databases are closed.
    _lock: File,
}

/// Names what was done to which path.
pub(crate) fn io_error(what: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let what = format!("{what} {}", path.display());
    move |error| StoreError::Io(format!("{what}: {error}"))
}

/// Makes a file's directory entry durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("syncing", path))
}

/// Removes a directory, if it is there.
fn remove_all(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Says that the event DB is damaged as a whole.
const CONDEMNED: &str = "EVENTS-DAMAGED";

impl Directory {
    /// Takes the directory for this process; makes it first if `create`.
    pub(crate) fn lock(path: &Path, create: bool) -> Result<Self, StoreError> {
        if !path.is_dir() {
            if !create {
                return Err(StoreError::Empty {
                    path: path.display().to_string(),
                });
            }
            // What people said stands in it: nobody's but its owner's.
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(path).map_err(io_error("making", path))?;
            if let Some(parent) = path.parent()
                && !parent.as_os_str().is_empty()
            {
                sync_dir(parent)?;
            }
        }
        let file = path.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(io_error("opening", &file))?;
        match Lock::try_lock_exclusive(&lock) {
            Ok(true) => {},
            Ok(false) => {
                return Err(StoreError::Locked {
                    path: path.display().to_string(),
                });
            },
            Err(error) => return Err(io_error("locking", &file)(error)),
        }
        Ok(Self {
            path: path.to_path_buf(),
            watermark: std::sync::OnceLock::new(),
            _lock: lock,
        })
    }

    /// The log database.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The event database.
    pub(crate) fn events(&self) -> PathBuf {
        self.path.join("events")
    }

    /// The next open finds the event DB condemned.
    pub(crate) fn condemn_events(&self) -> Result<(), StoreError> {
        self.write_whole(CONDEMNED, &[])
    }

    /// Whether the last process condemned the event DB.
    pub(crate) fn events_condemned(&self) -> Result<bool, StoreError> {
        let path = self.path.join(CONDEMNED);
        path.try_exists().map_err(io_error("looking for", &path))
    }

    /// Moves the event DB aside, in the place of what was moved there before.
    pub(crate) fn set_events_aside(&self) -> Result<(), StoreError> {
        let (events, aside) = (self.events(), self.path.join("events-damaged"));
        // Moved already when the last attempt was cut: what lies aside is to be kept.
        if events
            .try_exists()
            .map_err(io_error("looking for", &events))?
        {
            remove_all(&aside)?;
            fs::rename(&events, &aside).map_err(io_error("moving", &events))?;
            self.sync()?;
        }
        let marker = self.path.join(CONDEMNED);
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("removing", &marker)(error));
            },
            _ => {},
        }
        self.sync()
    }

    /// Makes the databases' own entries durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        sync_dir(&self.path)
    }

    /// Writes a file that is there whole or not at all.
    pub(crate) fn write_whole(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let part = self.path.join(format!("{name}.part"));
        let mut file = File::create(&part).map_err(io_error("making", &part))?;
        file.write_all(bytes).map_err(io_error("writing", &part))?;
        file.sync_all().map_err(io_error("syncing", &part))?;
        fs::rename(&part, &path).map_err(io_error("renaming", &part))?;
        self.sync()
    }

    fn watermark_path(&self) -> PathBuf {
        self.path.join("WATERMARK")
    }

    /// The watermark, open; `None` if there is none.
    fn watermark(&self) -> Result<Option<&File>, StoreError> {
        if let Some(file) = self.watermark.get() {
            return Ok(Some(file));
        }
        let path = self.watermark_path();
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Some(self.watermark.get_or_init(|| file))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("opening", &path)(error)),
        }
    }
}

/// Where snapshots wait that are still arriving.
const INCOMING: &str = "incoming";

impl Directory {
    /// Removes what arrived when the last process ended: nobody can finish it.
    pub(crate) fn clear_incoming(&self) -> Result<(), StoreError> {
        remove_all(&self.path.join(INCOMING))
    }

    /// A new file for a snapshot that arrives.
    pub(crate) fn incoming(&self, name: &str) -> Result<Incoming, StoreError> {
        let dir = self.path.join(INCOMING);
        fs::create_dir_all(&dir).map_err(io_error("making", &dir))?;
        let path = dir.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(io_error("making", &path))?;
        Ok(Incoming {
            path,
            file,
            bytes: 0,
        })
    }
}

/// Room that is given up when the disk is nearly full.
const BALLAST: &str = "BALLAST";

impl Directory {
    /// Bytes of the file system: what we could use in all, and what is left of it.
    pub(crate) fn space(&self) -> Result<(u64, u64), StoreError> {
        let stats = fs4::statvfs(&self.path).map_err(io_error("looking at", &self.path))?;
        let available = stats.available_space();
        // What is kept for root is nobody's.
        let reserved = stats.free_space().saturating_sub(available);
        Ok((stats.total_space().saturating_sub(reserved), available))
    }

    /// Bytes of the ballast.
    pub(crate) fn ballast(&self) -> u64 {
        fs::metadata(self.path.join(BALLAST)).map_or(0, |meta| meta.len())
    }

    /// Makes a ballast of so many bytes, or removes it.
    pub(crate) fn set_ballast(&self, bytes: u64) -> Result<(), StoreError> {
        let path = self.path.join(BALLAST);
        if bytes > 0 {
            let made = File::create(&path).and_then(|file| Lock::allocate(&file, bytes));
            return made.map_err(|error| {
                // Half a ballast is none.
                drop(fs::remove_file(&path));
                io_error("reserving", &path)(error)
            });
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io_error("removing", &path)(error))
            },
            _ => Ok(()),
        }
    }
}

/// A file that goes with its owner.
pub(crate) struct Incoming {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Scratch for Incoming {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all_at(bytes, self.bytes)
            .map_err(io_error("writing", &self.path))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn read(&self, place: u64, count: usize) -> Result<Vec<u8>, StoreError> {
        read_at(&self.file, place, count).map_err(io_error("reading", &self.path))
    }

    fn len(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a spooled snapshot stays until the next start");
        }
    }
}

/// Reads up to `count` bytes from `place` on; fewer at the end of the file.
fn read_at(file: &File, place: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, place + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {},
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

fn place(side: Side) -> usize {
    match side {
        Side::A => 0,
        Side::B => SLOT_BYTES,
    }
}

impl Slots for Directory {
    fn read_slot(&self, side: Side) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(file) = self.watermark()? else {
            return Ok(None);
        };
        read_at(file, place(side) as u64, SLOT_BYTES)
            .map(Some)
            .map_err(io_error("reading", &self.watermark_path()))
    }

    fn write_slot(&self, side: Side, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(file) = self.watermark()? {
            return file
                .write_all_at(bytes, place(side) as u64)
                .and_then(|()| file.sync_data())
                .map_err(io_error("writing", &self.watermark_path()));
        }
        // Written in full, zeros included: later writes change no metadata of the file.
        let mut whole = vec![0; 2 * SLOT_BYTES];
        if let Some(slot) = whole.get_mut(place(side)..place(side) + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
        self.write_whole("WATERMARK", &whole)
    }
}

impl Home for Directory {
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    fn read_identity(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path.join("IDENTITY");
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    fn write_identity(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_whole("IDENTITY", bytes)
    }

    fn has_log(&self) -> Result<bool, StoreError> {
        let path = self.log().join("CURRENT");
        path.try_exists().map_err(io_error("looking for", &path))
    }
}
