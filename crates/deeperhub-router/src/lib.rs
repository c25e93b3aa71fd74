//! Who is subscribed where, and an ordered hand-over of publishes to worker threads
