"""Images, folders, videos and cameras in; panels and maps out."""
