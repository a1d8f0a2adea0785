package header

// names is how a sender of HTTP/1 spelled the names of its fields.
type names struct {
	on     bool
	proper bool   // names that were not kept are written in proper case
	text   []byte // those that are not all lower case, each ended by a colon
}

// KeepNames makes h remember the spelling of names that KeepName is given, until Reset; others are
// written in lower case, or in proper case.
func (h *Header) KeepNames(proper bool) { h.names.on, h.names.proper = true, proper }

// Spells reports whether h decides how its names are written.
func (h *Header) Spells() bool { return h.names.on }

// KeepName notes the name that line begins with, as it came. The first spelling of a name is the one
// that stays.
func (h *Header) KeepName(line []byte) {
	n, lower := 0, true
	for n < len(line) && Lower[line[n]] != 0 {
		lower = lower && Lower[line[n]] == line[n]
		n++
	}
	if !lower {
		h.names.text = append(append(h.names.text, line[:n]...), ':')
	}
}

// AppendName appends a lower-case name as h spells it; if h does not decide, in proper case if that
// is asked for.
func (h *Header) AppendName(dst []byte, name string, proper bool) []byte {
	if h.names.on {
		if spelled := h.spelling(name); spelled != nil {
			return append(dst, spelled...)
		}
		proper = h.names.proper
	}
	if !proper {
		return append(dst, name...)
	}
	return appendProper(dst, name)
}

func (h *Header) spelling(name string) []byte {
	for text := h.names.text; len(text) > 0; {
		n := 0
		for text[n] != ':' {
			n++
		}
		if n == len(name) && equalLower(text[:n], name) {
			return text[:n]
		}
		text = text[n+1:]
	}
	return nil
}

func equalLower(b []byte, lower string) bool {
	for i := range b {
		if Lower[b[i]] != lower[i] {
			return false
		}
	}
	return true
}

// appendProper appends a name with the first letter of each word in upper case.
func appendProper(dst []byte, name string) []byte {
	first := true
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z'
		if first && letter {
			c -= 'a' - 'A'
		}
		first = !letter && (c < '0' || c > '9')
		dst = append(dst, c)
	}
	return dst
}

// AppendSpelled is AppendTo with the names as AppendName writes them.
func (h *Header) AppendSpelled(dst []byte, proper bool) []byte {
	for i := range h.fields {
		name, value := h.At(i)
		dst = append(h.AppendName(dst, name, proper), ": "...)
		dst = append(append(dst, value...), "\r\n"...)
	}
	return dst
}
