package accesslog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
)

const (
	flushAt   = 64 << 10 // bytes after which a buffer goes to the writer
	maxQueued = 128      // buffers that wait for a slow file; more are dropped
)

// Writer writes lines to files on one goroutine, so that a slow file or a full pipe never holds a
// loop up: when too much waits, lines are dropped and counted. Safe for concurrent use.
type Writer struct {
	log     *slog.Logger
	queue   chan full
	free    sync.Pool // *[]byte
	dropped atomic.Uint64

	mu    sync.Mutex // guards files and their descriptors
	files map[string]*File
}

// full is a buffer on its way to its file.
type full struct {
	file  *File
	bytes *[]byte
	done  chan<- struct{} // instead of bytes: all before it is written
}

// File is an open file, or the process's own output. A path has one File.
type File struct {
	w      *Writer
	path   string
	f      *os.File
	failed atomic.Bool // the last write failed, and that was logged
}

// NewWriter returns a writer; lines are written while Run runs.
func NewWriter(log *slog.Logger) *Writer {
	return &Writer{log: log, queue: make(chan full, maxQueued), files: map[string]*File{}}
}

// Run writes until ctx ends and then what still waits. Flush the buffers before ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	for {
		select {
		case b := <-w.queue:
			w.write(b)
		case <-ctx.Done():
			for {
				select {
				case b := <-w.queue:
					w.write(b)
				default:
					return nil
				}
			}
		}
	}
}

func (w *Writer) write(b full) {
	if b.done != nil {
		close(b.done)
		return
	}
	w.mu.Lock()
	f := b.file.f
	_, err := f.Write(*b.bytes)
	w.mu.Unlock()
	if err != nil && !b.file.failed.Swap(true) {
		w.log.Warn("access log is not written", "path", b.file.path, "error", err)
	}
	if err == nil {
		b.file.failed.Store(false)
	}
	*b.bytes = (*b.bytes)[:0]
	w.free.Put(b.bytes)
}

// Open returns the file with that path, creating it (mode 0644). /dev/stdout and /dev/stderr are the
// process's own descriptors: a process without the right to open them anew may still write to them.
func (w *Writer) Open(path string) (*File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.files[path]; f != nil {
		return f, nil
	}
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("opening access log: %w", err)
	}
	w.files[path] = &File{w: w, path: path, f: f}
	return w.files[path], nil
}

func open(path string) (*os.File, error) {
	switch path {
	case "/dev/stdout":
		return os.Stdout, nil
	case "/dev/stderr":
		return os.Stderr, nil
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// Reopen opens all files anew, after a log rotation. A file that cannot be opened stays as it was.
func (w *Writer) Reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for path, f := range w.files {
		if f.f == os.Stdout || f.f == os.Stderr {
			continue
		}
		n, err := open(path)
		if err != nil {
			return fmt.Errorf("opening access log: %w", err)
		}
		f.f.Close() // only appended to; what was written is written
		f.f = n
	}
	return nil
}

// Dropped returns how many buffers were dropped because a file was too slow.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Sync waits until all that was flushed before is written. Run must be running.
func (w *Writer) Sync(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case w.queue <- full{done: done}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Buffer collects the lines of one loop for a file. Not for concurrent use.
type Buffer struct {
	file  *File
	bytes *[]byte
}

// NewBuffer returns an empty buffer. Its owner calls Flush once a second and at the end.
func (f *File) NewBuffer() *Buffer { return &Buffer{file: f} }

// Append appends the line of e, and hands what is there to the writer if it is enough.
func (b *Buffer) Append(f *Format, e *Entry) {
	if b.bytes == nil {
		b.bytes = b.file.w.take()
	}
	*b.bytes = f.Append(*b.bytes, e)
	if len(*b.bytes) >= flushAt {
		b.Flush()
	}
}

func (w *Writer) take() *[]byte {
	if p, ok := w.free.Get().(*[]byte); ok {
		return p
	}
	s := make([]byte, 0, 4<<10)
	return &s
}

// Flush hands what is there to the writer. It never blocks.
func (b *Buffer) Flush() {
	if b.bytes == nil || len(*b.bytes) == 0 {
		return
	}
	select {
	case b.file.w.queue <- full{file: b.file, bytes: b.bytes}:
		b.bytes = nil
	default:
		b.file.w.dropped.Add(1)
		*b.bytes = (*b.bytes)[:0]
	}
}
