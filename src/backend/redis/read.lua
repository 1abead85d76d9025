-- Reads questions and how they stand.
-- ARGV    approval ids
-- Returns for each: state, when it was decided or ends, the question, the decision, votes, when it
-- was asked, now, after how many percent of its time people were warned, and the nonce of the request.
-- Nothing of one that is unknown but its state.
-- Of a record that is no such hash: 'unreadable', and why. It hides none of the others.
local now, answer = now_in_ms(), {}
local function read(id)
  local state, at, is_same = standing(id, now)
  local ask = redis.call('HMGET', ASK .. id, 'document', 'at', 'nonce')
  local ballot = redis.call('HMGET', DECISION .. id, 'document', 'votes', 'warned')
  return { state, whole(at), ask[1] or '', is_same and ballot[1] or '',
    is_same and ballot[2] or '0', ask[2] or '0', whole(now), is_same and ballot[3] or '',
    ask[3] or '' }
end
for _, id in ipairs(ARGV) do
  local is_read, row = pcall(read, id)
  if not is_read then
    row = { 'unreadable', type(row) == 'table' and row.err or tostring(row) }
  end
  answer[#answer + 1] = row
end
return answer
