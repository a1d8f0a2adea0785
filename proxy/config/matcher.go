package config

import (
	"regexp"
	"strings"
)

// StringKind is how a StringMatcher compares.
type StringKind uint8

// Kinds of string matches.
const (
	MatchExact StringKind = iota
	MatchPrefix
	MatchSuffix
	MatchContains
	MatchRegex // the whole string
)

// StringMatcher matches a string. The zero value matches the empty string.
type StringMatcher struct {
	Kind       StringKind
	Value      string // lower case if IgnoreCase
	IgnoreCase bool
	Regex      *regexp.Regexp // anchored
}

// Match reports whether s matches. It allocates nothing unless IgnoreCase meets upper case in a
// contains match.
func (m *StringMatcher) Match(s string) bool {
	switch m.Kind {
	case MatchRegex:
		return m.Regex.MatchString(s)
	case MatchPrefix:
		return len(s) >= len(m.Value) && m.eq(s[:len(m.Value)])
	case MatchSuffix:
		return len(s) >= len(m.Value) && m.eq(s[len(s)-len(m.Value):])
	case MatchContains:
		if m.IgnoreCase {
			s = strings.ToLower(s)
		}
		return strings.Contains(s, m.Value)
	}
	return len(s) == len(m.Value) && m.eq(s)
}

func (m *StringMatcher) eq(s string) bool {
	if !m.IgnoreCase {
		return s == m.Value
	}
	return equalFoldASCII(s, m.Value)
}

// equalFoldASCII compares, folding only ASCII letters (HTTP's case-insensitivity).
func equalFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		x, y := a[i], b[i]
		if x != y {
			if x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z' {
				return false
			}
		}
	}
	return true
}

// HeaderMatcher matches a request header.
type HeaderMatcher struct {
	Name    string // lower case, or a pseudo-header
	Present bool   // only existence counts
	Range   *Range // an integer in a half-open range
	Value   StringMatcher
	Invert  bool
	// MissingAsEmpty takes an absent header as the empty string.
	MissingAsEmpty bool
}

// Range is a half-open range of integers.
type Range struct{ Start, End int64 }

// QueryMatcher matches a query parameter or a cookie.
type QueryMatcher struct {
	Name    string
	Present bool // only existence counts
	Value   StringMatcher
	Invert  bool
}

// Request is what route matching asks of a request. Strings need only be good during the call.
type Request interface {
	// Header returns a header by lower-case name, several values joined by a comma, and the
	// pseudo-headers :authority, :path (with query), :method, :scheme.
	Header(name string) (value string, ok bool)
	// Nth returns the value of the i-th field of that name, from 0.
	Nth(name string, i int) (value string, ok bool)
}

// TLSRequest is a Request that knows of the client's certificate.
type TLSRequest interface {
	Request
	// ClientCertificate reports whether the client presented one and whether it was verified.
	ClientCertificate() (presented, validated bool)
}
