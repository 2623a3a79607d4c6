#!lua flags=allow-oom
-- Run one small command although memory is full, for chores that free memory or let a bucket rest.
--
-- KEYS  1 the command's key
-- ARGV  the command, and what follows its key
-- Returns the command's reply; of SET … NX, whether it was set: 1 or 0.
local reply = redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
if ARGV[1] ~= 'SET' then return reply end
return reply and 1 or 0
