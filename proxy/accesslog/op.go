package accesslog

// op is one operator of a format, or a literal.
type op struct {
	lit string
	fn  func(dst []byte, e *Entry) []byte
}
