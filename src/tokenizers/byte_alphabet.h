// The alphabet of byte-level BPE: every byte as one printable character, so that a vocabulary of strings can hold any
// bytes. Printable Latin-1 stands for itself, the other 68 bytes for U+0100, U+0101, ... in order.
#pragma once

#include <string>
#include <string_view>

namespace ssm {

void append_in_byte_alphabet(std::string& out, std::string_view bytes);
// Back to bytes; a text with a character outside the alphabet stands for its own bytes.
void append_from_byte_alphabet(std::string& out, std::string_view text);

}  // namespace ssm
