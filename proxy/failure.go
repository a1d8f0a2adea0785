package proxy

import (
	"errors"
	"strings"
	"syscall"
)

// failure is why an attempt ended without an answer.
type failure struct {
	reason    reason
	transport string // what the transport says of it
}

// reason is why a stream or an attempt was reset.
type reason uint8

const (
	connectFailed reason = iota
	connectTimeout
	terminated // the connection ended
	remoteReset
	refused
	overflow
	protocolError
	noHost
)

// text is the reason as Envoy's bodies and details have it.
func (r reason) text() string {
	switch r {
	case connectFailed:
		return "remote connection failure"
	case connectTimeout:
		return "connection timeout"
	case terminated:
		return "connection termination"
	case remoteReset:
		return "remote reset"
	case refused:
		return "remote refused stream reset"
	case overflow:
		return "overflow"
	case protocolError:
		return "protocol error"
	}
	return "local reset"
}

func connectFailure(err error) failure {
	if errors.Is(err, errConnectTimeout) {
		return failure{connectTimeout, ""}
	}
	var t *tlsFailure
	if errors.As(err, &t) {
		return failure{connectFailed, t.Error()}
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		text := e.Error() // Envoy's are strerror's, which begin with a capital
		return failure{connectFailed, "delayed connect error: " + strings.ToUpper(text[:1]) + text[1:]}
	}
	return failure{connectFailed, err.Error()}
}
