package header

// Lower maps characters of tokens (RFC 9110, 5.6.2) to lower case, and others to 0.
var Lower = func() (t [256]byte) {
	for c := '0'; c <= '9'; c++ {
		t[c] = byte(c)
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = byte(c), byte(c)
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = byte(c)
	}
	return t
}()

// ValidHost reports whether s can be a Host or :authority: uri-host and port have none of these (RFC
// 3986, 3.2.2), and what is no host for one hop must be none for the next.
func ValidHost[T ~string | ~[]byte](s T) bool {
	for i := range len(s) {
		if !host[s[i]] {
			return false
		}
	}
	return true
}

var host = func() (t [256]bool) {
	for c := '!'; c < 0x7f; c++ {
		t[c] = true
	}
	for _, c := range `/?#@\,"<>^|{}` + "`" {
		t[c] = false
	}
	return t
}()

// Value says which bytes field values may hold.
var Value = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= ' ' && c != 0x7f || c == '\t'
	}
	return t
}()
