package certs

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxPEM bounds every input. A Secret or ConfigMap cannot be larger (1 MiB in Kubernetes).
const maxPEM = 1 << 20

// block is one PEM block and where it begins.
type block struct {
	*pem.Block
	number, line int
}

// wrong says what is wrong with the block.
func (b block) wrong(what string) error {
	return fmt.Errorf("block %d (line %d): %s", b.number, b.line, what)
}

var begin, end, dashes = []byte("-----BEGIN "), []byte("-----END "), []byte("-----")

// blocks splits a PEM text. Text between blocks and comment lines (#) are skipped, as every PEM
// reader does. Anything that looks like a part of a block and is not one is an error, so that
// no certificate is lost without a word. With an error it returns the blocks before the fault.
func blocks(data []byte) (all []block, err error) {
	switch {
	case len(data) > maxPEM:
		return nil, fmt.Errorf("%d bytes of PEM, more than %d", len(data), maxPEM)
	case len(bytes.TrimSpace(data)) == 0:
		return nil, errors.New("is empty")
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		return nil, errors.New("begins with a byte order mark; save it as UTF-8 without BOM")
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return nil, errors.New("is UTF-16 text; save it as UTF-8 without BOM")
	}
	var open block // Block is nil outside of a block
	start, at, number := 0, 0, 0
	for line := range bytes.Lines(data) {
		from := at
		at += len(line)
		number++
		text := bytes.TrimRight(line, " \t\r\n")
		outside := open.Block == nil
		switch {
		case outside && bytes.HasPrefix(bytes.TrimLeft(text, " \t"), []byte("#")):
		case outside && bytes.Contains(text, begin):
			open = block{&pem.Block{}, len(all) + 1, number}
			if open.Type, err = marker(text, begin); err != nil {
				return all, open.wrong(err.Error())
			}
			start = from
		case outside && bytes.Contains(text, end):
			return all, fmt.Errorf("line %d: a block ends that did not begin", number)
		case outside:
		case bytes.Contains(text, begin) && !bytes.Contains(text, end):
			return all, open.wrong(fmt.Sprintf("it is cut off: another block begins on line %d before its END line", number))
		case bytes.Contains(text, end):
			kind, err := marker(text, end)
			if err != nil {
				return all, open.wrong(err.Error())
			}
			if kind != open.Type {
				return all, open.wrong(fmt.Sprintf("BEGIN %s is followed by END %s", open.Type, kind))
			}
			if open.Block, _ = pem.Decode(data[start:at]); open.Block == nil {
				return all, block{nil, len(all) + 1, open.line}.wrong("its base64 text is damaged")
			}
			all, open = append(all, open), block{}
		}
	}
	if open.Block != nil {
		return all, open.wrong("it is cut off: there is no END line")
	}
	return all, nil
}

// marker returns the type that a BEGIN or END line names.
func marker(line, which []byte) (string, error) {
	name := string(bytes.TrimRight(which, " "))
	rest, ok := bytes.CutPrefix(line, which)
	kind, more, closed := bytes.Cut(rest, dashes)
	switch {
	case bytes.Contains(line, []byte(`\n`)):
		return "", errors.New(`it holds \n as two characters where a line should end`)
	case !ok:
		return "", fmt.Errorf("%s does not begin its line", name)
	case !closed:
		return "", fmt.Errorf("its %s line lacks the closing -----", name)
	case len(more) > 0 && bytes.Contains(more, []byte("BEGIN ")):
		return "", fmt.Errorf("the next block begins on its %s line; a newline is missing between the two", name)
	case len(more) > 0:
		return "", fmt.Errorf("its %s line does not end after -----", name)
	}
	return string(kind), nil
}
