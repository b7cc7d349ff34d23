//! Turns a path into a program that is ready to run: the search for the file, scripts, segments,
//! the dynamic loader.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::memory::window::{READ, WRITE};

use super::address_space::{AddressSpace, PAGE_BYTES, Place, Source};
use super::elf::{self, ElfError, Image, Segment};
use super::errno::Errno;

/// The address of a position-independent program: two thirds of the way up.
pub(crate) const PIE_BASE: u64 = 0x2a_aaaa_a000;

/// Linux reads this many bytes of a script's first line (BINPRM_BUF_SIZE).
const SCRIPT_LINE_BYTES: usize = 256;
/// A script may name a script, this many times.
const SCRIPT_DEPTH: usize = 4;

/// Why a program cannot be started.
#[derive(Debug)]
pub enum LoadError {
    /// No file of that name, or a directory on the way is missing.
    NotFound(PathBuf),
    /// The file exists and cannot be executed.
    NotExecutable(PathBuf, &'static str),
    /// The file cannot be read.
    Unreadable(PathBuf, std::io::Error),
    /// The contents are no program for this machine.
    Format(PathBuf, ElfError),
    /// A script's first line cannot be followed.
    Script(PathBuf, &'static str),
    /// The dynamic loader of a program is not there.
    NoLoader {
        /// The program.
        program: PathBuf,
        /// The loader's name as the program has it.
        loader: PathBuf,
    },
    /// There is no guest memory for it.
    Memory(PathBuf, Errno),
    /// Its segments lie where a stack of so many bytes goes.
    NoStack(PathBuf, u64),
}

impl LoadError {
    /// A shell's exit status for it: 127 for not found, else 126.
    pub fn exit_status(&self) -> i32 {
        if matches!(self, Self::NotFound(_)) { 127 } else { 126 }
    }

    /// The answer of execve.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound(_) | Self::NoLoader { .. } => Errno::ENOENT,
            Self::NotExecutable(..) => Errno::EACCES,
            Self::Unreadable(_, error) => Errno(error.raw_os_error().unwrap_or(libc::EIO)),
            Self::Format(..) | Self::Script(..) => Errno::ENOEXEC,
            Self::Memory(_, errno) => *errno,
            Self::NoStack(..) => Errno::ENOMEM,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(path) => write!(f, "{}: no such file", path.display()),
            Self::NotExecutable(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Unreadable(path, error) => write!(f, "{}: cannot be read: {error}", path.display()),
            Self::Format(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Script(path, why) => write!(f, "{}: {why}", path.display()),
            Self::NoLoader { program, loader } => write!(
                f,
                "{}: needs the dynamic loader {}, which is not there: say where its root is with -L, or link it with -static",
                program.display(),
                loader.display()
            ),
            Self::Memory(path, errno) => write!(f, "{}: cannot be loaded into guest memory: {errno}", path.display()),
            Self::NoStack(path, len_bytes) => write!(
                f,
                "{}: its segments leave no room for a stack of {len_bytes:#x} bytes at the top of the address space; -s asks for another size",
                path.display()
            ),
        }
    }
}

impl std::error::Error for LoadError {}

/// An absolute path as the guest sees it, found below `sysroot` first.
pub fn in_sysroot(sysroot: Option<&Path>, path: &Path) -> PathBuf {
    let below = sysroot.zip(path.strip_prefix("/").ok()).map(|(root, rest)| root.join(rest));
    below.filter(|candidate| candidate.symlink_metadata().is_ok()).unwrap_or_else(|| path.to_path_buf())
}

/// The contents of a script's first line.
struct Script {
    interpreter: PathBuf,
    argument: Option<Vec<u8>>,
}

/// A program or script that was found and opened.
#[derive(Debug)]
pub struct Found {
    /// Its path on the host.
    pub path: PathBuf,
    file: File,
    header: Vec<u8>,
}

impl Found {
    /// Opens `path` as execve would.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        let error = |error: std::io::Error| match error.kind() {
            NotFound | NotADirectory => LoadError::NotFound(path.to_path_buf()),
            PermissionDenied => LoadError::NotExecutable(path.to_path_buf(), "permission denied"),
            _ => LoadError::Unreadable(path.to_path_buf(), error),
        };
        let metadata = path.metadata().map_err(error)?;
        if metadata.is_dir() {
            return Err(LoadError::NotExecutable(path.to_path_buf(), "is a directory"));
        }
        if !metadata.is_file() {
            return Err(LoadError::NotExecutable(path.to_path_buf(), "is not a regular file"));
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            return Err(LoadError::NotExecutable(path.to_path_buf(), "is not executable; chmod +x it first"));
        }
        let file = File::open(path).map_err(error)?;
        let mut header = vec![0; SCRIPT_LINE_BYTES];
        let got = file.read_at(&mut header, 0).map_err(error)?;
        header.truncate(got);
        Ok(Self { path: path.to_path_buf(), file, header })
    }

    /// Whether it is a program for this emulator.
    pub fn is_riscv(&self) -> bool {
        elf::is_riscv(&self.header)
    }

    /// Whether it is an ELF file at all.
    pub fn is_elf(&self) -> bool {
        self.header.starts_with(b"\x7fELF")
    }

    /// Interpreter and optional argument, if it is a script.
    fn script(&self) -> Result<Option<Script>, LoadError> {
        let Some(line) = self.header.strip_prefix(b"#!") else { return Ok(None) };
        let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
        let line = line[..end].trim_ascii();
        let split = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
        let (name, argument) = (&line[..split], line[split..].trim_ascii());
        if name.is_empty() {
            return Err(LoadError::Script(self.path.clone(), "a script whose first line names no interpreter"));
        }
        let argument = (!argument.is_empty()).then(|| argument.to_vec());
        Ok(Some(Script { interpreter: PathBuf::from(OsStr::from_bytes(name)), argument }))
    }
}

/// Follows scripts to the program that runs them; returns it with its arguments.
pub fn resolve(
    path: &Path,
    mut argv: Vec<Vec<u8>>,
    sysroot: Option<&Path>,
) -> Result<(Found, Vec<Vec<u8>>), LoadError> {
    let mut found = Found::open(path)?;
    let mut script_path = path.as_os_str().as_bytes().to_vec();
    for _ in 0..=SCRIPT_DEPTH {
        let Some(Script { interpreter, argument }) = found.script()? else { return Ok((found, argv)) };
        let name = interpreter.as_os_str().as_bytes().to_vec();
        let rest = argv.into_iter().skip(1);
        argv = std::iter::once(name.clone()).chain(argument).chain([script_path]).chain(rest).collect();
        found = Found::open(&in_sysroot(sysroot, &interpreter))?;
        script_path = name;
    }
    Err(LoadError::Script(found.path, "too many scripts that name scripts"))
}

/// A program in guest memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Address of the first instruction: the dynamic loader's entry if it has one.
    pub start: u64,
    /// Its own entry.
    pub entry: u64,
    /// Address of its program headers, 0 if they are not in memory.
    pub phdr_address: u64,
    /// Their number.
    pub phdr_count: u64,
    /// Address of the dynamic loader, 0 without one.
    pub interpreter_base: u64,
    /// One past its last page: the heap goes there.
    pub end: u64,
}

/// Loads `found`, and its dynamic loader.
pub fn load(found: &Found, space: &mut AddressSpace, sysroot: Option<&Path>) -> Result<Loaded, LoadError> {
    let image = image_of(found)?;
    // The sums wrap: an image may begin above the base.
    let bias = if image.is_position_independent { PIE_BASE.wrapping_sub(image.start()) } else { 0 };
    map_image(found, &image, bias, space)?;
    let mut loaded = Loaded {
        start: image.entry.wrapping_add(bias),
        entry: image.entry.wrapping_add(bias),
        phdr_address: image.phdr_address.map_or(0, |address| address.wrapping_add(bias)),
        phdr_count: image.phdr_count,
        interpreter_base: 0,
        end: image.end().wrapping_add(bias),
    };
    if let Some(name) = &image.interpreter {
        let name = Path::new(OsStr::from_bytes(name));
        let loader = Found::open(&in_sysroot(sysroot, name)).map_err(|error| match error {
            LoadError::NotFound(_) => LoadError::NoLoader { program: found.path.clone(), loader: name.to_path_buf() },
            other => other,
        })?;
        let loader_image = image_of(&loader)?;
        let base = place_loader(&loader, &loader_image, space)?;
        map_image(&loader, &loader_image, base, space)?;
        loaded.start = loader_image.entry.wrapping_add(base);
        loaded.interpreter_base = base;
    }
    Ok(loaded)
}

fn image_of(found: &Found) -> Result<Image, LoadError> {
    let unreadable = |error| LoadError::Unreadable(found.path.clone(), error);
    let file_bytes = found.file.metadata().map_err(unreadable)?.len();
    let read = |offset, buffer: &mut [u8]| {
        let mut done = 0;
        while done < buffer.len() {
            match found.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        done
    };
    let image = elf::parse(file_bytes, &read).map_err(|error| LoadError::Format(found.path.clone(), error))?;
    let top = crate::memory::window::WINDOW_LEN_BYTES - PIE_BASE;
    if image.is_position_independent && image.end() - image.start() > top {
        let error = ElfError::DoesNotFit { address: image.start(), len_bytes: image.end() - image.start() };
        return Err(LoadError::Format(found.path.clone(), error));
    }
    Ok(image)
}

/// The value to add to the loader's addresses.
fn place_loader(loader: &Found, image: &Image, space: &mut AddressSpace) -> Result<u64, LoadError> {
    if !image.is_position_independent {
        return Ok(0);
    }
    let memory = |errno| LoadError::Memory(loader.path.clone(), errno);
    let len = image.end() - image.start();
    let place = space.map(Place::Hint(0), len, 0, Source::Anonymous).map_err(memory)?;
    space.unmap(place, len).map_err(memory)?;
    Ok(place.wrapping_sub(image.start()))
}

fn map_image(found: &Found, image: &Image, bias: u64, space: &mut AddressSpace) -> Result<(), LoadError> {
    for segment in &image.segments {
        map_segment(found, segment, bias, space).map_err(|errno| LoadError::Memory(found.path.clone(), errno))?;
    }
    Ok(())
}

/// Maps one segment: whole pages of the file, zeros behind them.
fn map_segment(found: &Found, segment: &Segment, bias: u64, space: &mut AddressSpace) -> Result<(), Errno> {
    let start = segment.page_start().wrapping_add(bias);
    let lead = segment.address - segment.page_start();
    let file_end = segment.address + segment.file_bytes;
    let file_pages = if segment.file_bytes == 0 { 0 } else { lead + segment.file_bytes };
    if file_pages > 0 {
        let source = Source::File { fd: found.file.as_raw_fd(), offset: segment.offset - lead };
        space.map(Place::Fixed(start), file_pages, segment.prot | READ | WRITE, source)?;
        // The last page's bytes beyond the segment must read as zero.
        let tail = file_end.next_multiple_of(PAGE_BYTES) - file_end;
        if segment.memory_bytes > segment.file_bytes && tail > 0 {
            space.write_zeros(file_end.wrapping_add(bias), tail)?;
        }
        if segment.prot & (READ | WRITE) != READ | WRITE {
            space.protect(start, file_pages, segment.prot)?;
        }
    }
    let zero_start = segment.page_start() + file_pages.next_multiple_of(PAGE_BYTES);
    if segment.page_end() > zero_start {
        let place = Place::Fixed(zero_start.wrapping_add(bias));
        space.map(place, segment.page_end() - zero_start, segment.prot, Source::Anonymous)?;
    }
    Ok(())
}

/// `path` for the kernel; a path with a NUL in it is no path.
pub fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}
