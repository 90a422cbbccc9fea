"""From files to arrays. The only room that opens video files; importing it loads nothing heavy."""
