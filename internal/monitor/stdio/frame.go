package stdio

import (
	"bytes"
	"time"
)

// maxLine is the most content one line of a log file has; longer lines of a
// container become pieces.
//
// CRI: the kubelet's reader takes pieces tagged P together with the F that follows.
const maxLine = 16 << 10

const stampLayout = "2006-01-02T15:04:05.000000000Z"

// appendHeader appends what stands before the tag of each line: time and stream.
func appendHeader(dst []byte, at time.Time, stream string) []byte {
	dst = at.UTC().AppendFormat(dst, stampLayout)
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	return append(dst, ' ')
}

// cut takes the first line or piece off data. full tells a line's end from a
// piece. Without either (ok is false) data is an unfinished line of at most
// maxLine bytes, to be kept until more arrives. With crlf a carriage return
// before the newline is dropped, as terminals add it.
func cut(data []byte, crlf bool) (content, rest []byte, full, ok bool) {
	// A line that fits ends within maxLine bytes and its terminator.
	window := data[:min(len(data), maxLine+2)]
	i := bytes.IndexByte(window, '\n')
	if i >= 0 {
		content, rest = data[:i], data[i+1:]
		if crlf && i > 0 && content[i-1] == '\r' {
			content = content[:i-1]
		}
		if len(content) <= maxLine {
			return content, rest, true, true
		}
	}
	if len(data) > maxLine {
		return data[:maxLine], data[maxLine:], false, true
	}
	return nil, data, false, false
}

// appendLines formats lines from data until dst has limit bytes or only an
// unfinished line is left. more is whether it stopped at the limit.
func appendLines(dst, data, header []byte, crlf bool, limit int) (out, rest []byte, more bool) {
	begin := appendLine(nil, header, nil, true)
	begin = begin[:len(begin)-1]
	for len(dst) < limit {
		// Most lines: taken with their newline.
		if i := bytes.IndexByte(data[:min(len(data), maxLine+1)], '\n'); i >= 0 && !crlf {
			dst = append(dst, begin...)
			dst = append(dst, data[:i+1]...)
			data = data[i+1:]
			continue
		}
		content, rest, full, ok := cut(data, crlf)
		if !ok {
			return dst, data, false
		}
		dst = appendLine(dst, header, content, full)
		data = rest
	}
	return dst, data, true
}

func appendLine(dst, header, content []byte, full bool) []byte {
	dst = append(dst, header...)
	if full {
		dst = append(dst, "F "...)
	} else {
		dst = append(dst, "P "...)
	}
	dst = append(dst, content...)
	return append(dst, '\n')
}
